"""Write a trained model for others to load: timm folder, ONNX, TorchScript, the hub."""
