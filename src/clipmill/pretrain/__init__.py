"""Pretraining before any task: CLIP, CoCa, MAE, supervised encoders, and teacher layers."""
