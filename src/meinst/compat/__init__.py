"""Conversion of foreign files: the published MEInst models and Detectron2's ImageNet backbones.

Files are converted once, and every tensor must match. Only the command line uses this package.
"""
