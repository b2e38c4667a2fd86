"""Public data sets and users' own files as training rows: group `dataset`, one file each."""

from vlsafe.data.sets import jsonl, llava_instruct, llava_pretrain, safe_rlhf, safety_tuned_llamas, spa_vl, vlguard

__all__ = ["jsonl", "llava_instruct", "llava_pretrain", "safe_rlhf", "safety_tuned_llamas", "spa_vl", "vlguard"]
