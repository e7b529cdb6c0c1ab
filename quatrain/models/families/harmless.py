"""Why keys of a `config.json` that nothing reads change no number that a model computes: data, for people and tests."""

from __future__ import annotations

from collections.abc import Mapping

REASONS: Mapping[str, tuple[str, ...]] = {
    "a rate of dropout or of dropped layers: training alone has these, and a recipe says its own": (
        "activation_dropout", "attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "classif_dropout",
        "classifier_dropout", "decoder_layerdrop", "dropout", "dropout_rate", "embd_pdrop", "embedding_dropout",
        "encoder_layerdrop", "hidden_dropout", "hidden_dropout_prob", "layerdrop", "mlp_dropout", "qa_dropout",
        "resid_pdrop", "seq_classif_dropout", "summary_first_dropout",
    ),
    "how weights began, which the files replace": (
        "initializer_cutoff_factor", "initializer_factor", "sinusoidal_pos_embds",
    ),
    "how fast or with how much memory another program computes the same": (
        "_attn_implementation", "attention_softmax_in_fp32", "attn_implementation", "bias_dropout_fusion",
        "cache_implementation", "chunk_size_feed_forward", "deterministic_flash_attn", "gradient_checkpointing",
        "masked_softmax_fusion", "offset_alibi", "reference_compile", "reorder_and_upcast_attn",
        "repad_logits_with_grad", "skip_bias_add", "skip_bias_add_qkv", "slow_but_exact", "torchscript", "use_bfloat16",
        "use_cache",
    ),
    "slices of a product, whose sum is the same": ("pretraining_tp",),
    "what a call of another program returns beside the result": (
        "output_attentions", "output_hidden_states", "output_past", "return_dict",
    ),
    "the loss of a pretraining of another program": ("sparse_pred_ignore_index", "sparse_prediction", "tf_legacy_loss"),
    "a note of who made the files, and from what": (
        "_name_or_path", "finetuning_task", "is_llama_config", "language", "max_sequence_length", "name",
        "name_or_path", "replacing_rate", "save_step", "sentence_transformers", "student_decoder_layers",
        "student_encoder_layers", "task_specific_params", "tie_weights_", "tokenizer_class", "transformers.js_config",
        "transformers_version",
    ),
    "the inverse of id2label": ("label2id",),
    "repeats how many labels there are": ("_num_labels",),
    "code of the folder, which is never run": ("auto_map",),
    "a text that a pipeline puts before its input; the caller does it here": ("prefix",),
    "what a wrapper does with the logits of a cross-encoder": ("sbert_ce_default_activation_function",),
    "a part of the original implementation that no class of transformers has": (
        "directionality", "extra_pos_embeddings", "pooler_fc_size", "pooler_num_attention_heads",
        "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type", "predict_special_tokens",
    ),
    "only the head of double heads has it, where `read` checks it": (
        "summary_activation", "summary_proj_to_labels", "summary_type", "summary_use_proj",
    ),
    "another key of the family says the same and counts": (
        "_sliding_window_pattern", "hidden_act", "is_decoder", "layer_norm_eps", "original_max_position_embeddings",
        "sliding_window_pattern",
    ),
    "an id that the tokenizer's own files say": ("cls_token_id", "sep_token_id", "unk_token_id"),
}  # fmt: skip
"""Each reason with the keys that it holds for, in the families that list the key as harmless."""

WHY: Mapping[str, str] = {key: reason for reason, keys in REASONS.items() for key in keys}
"""Each key with its reason."""
