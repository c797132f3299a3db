"""Looking inside a trained network: metrics, feature distributions, Grad-CAM, and why a batch size hurts."""
