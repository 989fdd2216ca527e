"""Which checkpoint should fine-tuning start from: transferability from principal gradients."""
