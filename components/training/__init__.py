"""Components that pretrain, fine-tune and search hyperparameters."""
