"""What training minimises: margin softmax, losses over pairs, cross-batch memory, distillation."""
