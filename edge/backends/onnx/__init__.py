"""ONNX models, run by ONNX Runtime: the only room that knows that library.

``encoder`` and ``decoder`` are the doors. Behind them are sessions and the devices they run on,
tokenizers, the rows of a pass and the key values between passes. Knows nothing of llama.cpp, tasks
or prompts' wording.
"""
