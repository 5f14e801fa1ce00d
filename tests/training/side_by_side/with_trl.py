from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

model = AutoModelForCausalLM.from_pretrained("sft-model")
tokenizer = AutoTokenizer.from_pretrained("sft-model")
rows = load_dataset("json", data_files="pairs.jsonl", split="train")
common = dict(
    output_dir="out", learning_rate=5e-4, per_device_train_batch_size=2, gradient_accumulation_steps=4, num_train_epochs=4,
    lr_scheduler_type="cosine", warmup_steps=1, logging_steps=1, bf16=False, gradient_checkpointing=False, use_cpu=True,
    save_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
)  # fmt: skip
args = DPOConfig(**common, loss_type="sigmoid", beta=0.3, max_length=1024)
trainer = DPOTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer)
trainer.train()
