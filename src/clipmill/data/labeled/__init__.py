"""Labeled datasets for fine-tuning: dense labels, COCO, and folders of classes."""
