"""The student server: many LoRA adapters on one base model, speaking LoRAX's wire contract."""
