"""GGUF models, run by llama.cpp: the only room that knows that library.

``decoder`` is the door: it opens a model and answers as ``edge.backends.base.Decoder``. Behind it
are the C handles, the native engine, decisions over labels, snapshots of prompts' beginnings and
where layers run. Knows nothing of ONNX, tasks or prompts' wording.
"""
