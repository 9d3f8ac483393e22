"""What the loop trains before any task: CLIP and CoCa."""
