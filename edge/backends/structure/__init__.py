"""Answers that cannot leave a schema, an expression or a grammar.

``grammars`` says what is allowed, ``vocabulary`` what the tokens of a decoder are in bytes, and
``constraint`` puts both together into the mask of the next token. Works with every decoder; loads
no model.
"""
