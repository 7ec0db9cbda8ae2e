"""What travels: messages, images, updates, bundles. Shared by edge and cloud; imports neither torch nor onnx."""
