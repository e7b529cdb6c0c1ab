"""Keys of a `config.json` that do not change what a model computes, each with the reason; checked by the tests."""

from __future__ import annotations

from collections.abc import Mapping

REASONS: Mapping[str, tuple[str, ...]] = {
    "a dropout rate: used in training only, where the recipe sets it": (
        "activation_dropout", "attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "classif_dropout",
        "classifier_dropout_prob", "cls_dropout", "embed_dropout", "pooler_dropout", "resid_dropout",
        "residual_dropout", "summary_last_dropout", "classifier_dropout", "decoder_layerdrop", "dropout",
        "dropout_rate", "embd_pdrop", "embedding_dropout", "encoder_layerdrop", "hidden_dropout", "hidden_dropout_prob",
        "layerdrop", "mlp_dropout", "qa_dropout", "resid_pdrop", "seq_classif_dropout", "summary_first_dropout",
    ),
    "initialization: the weights are read from the files": (
        "initializer_cutoff_factor", "initializer_factor", "logit_scale_init_value", "rescale_prenorm_residual",
        "sinusoidal_pos_embds",
        "time_step_floor", "time_step_max", "time_step_min", "time_step_rank",
    ),
    "implementation options that change speed or memory, not the result": (
        "_attn_implementation", "autocast_kernel_dtype", "chunkwise_kernel", "inference_state_dtype",
        "mamba_ssm_dtype", "max_inference_chunksize", "mode", "norm_reduction_force_float32", "return_last_states",
        "sequence_kernel",
        "step_kernel", "attention_softmax_in_fp32", "attn_implementation", "bias_dropout_fusion",
        "cache_implementation", "chunk_size", "chunk_size_feed_forward",
        "deterministic_flash_attn", "gradient_checkpointing",
        "masked_softmax_fusion", "offset_alibi", "reference_compile", "reorder_and_upcast_attn",
        "repad_logits_with_grad", "residual_in_fp32",
        "skip_bias_add", "skip_bias_add_qkv", "slow_but_exact", "torchscript", "use_bfloat16",
        "use_cache",
    ),
    "an option of a decoder that paints pictures, which is not part of the model": ("encoder_stride",),
    "the decoder of a model that reads pictures says it in its own configuration": ("vocab_size",),
    "the label that the loss of transformers leaves out, which here is always -100": ("ignore_index",),
    "splits a matrix product into slices whose sum is the same": ("pretraining_tp",),
    "layers that predict further tokens are kept and written back, and not used": (
        "num_mtp_layers", "num_nextn_predict_layers",
    ),
    "how the tokens of a picture attend to each other; a text has none": ("use_bidirectional_attention",),
    "options of DeepSeek's own training, which transformers does not read": (
        "aux_loss_alpha", "ep_size", "initial_context_length", "seq_aux",
    ),
    "selects what transformers returns besides the result": (
        "output_attentions", "output_hidden_states", "output_past", "output_router_logits", "return_dict",
    ),
    "noise on a router's input in training, which no published model has": ("router_jitter_noise",),
    "augmentation of features in training, where a recipe sets it": (
        "apply_spec_augment", "mask_feature_length", "mask_feature_min_masks", "mask_feature_prob", "mask_time_length",
        "mask_time_min_masks", "mask_time_prob",
    ),
    "a part of transformers' head for classes of sounds, which Quatrain does not have": (
        "classifier_proj_size", "use_weighted_layer_sum",
    ),
    "smooths attention for word times; 7 in every published model, and here": ("median_filter_width",),
    "tokens that old versions forced; the language and the task are options here": ("forced_decoder_ids",),
    "options of the pre-training loss of another implementation": (
        "sparse_pred_ignore_index", "sparse_prediction", "tf_legacy_loss",
    ),
    "a note on the origin of the files": (
        "_name_or_path", "finetuning_task", "is_llama_config", "language", "max_sequence_length", "name",
        "name_or_path", "replacing_rate", "n_special", "save_step", "sentence_transformers", "student_decoder_layers",
        "student_encoder_layers", "task_specific_params", "tie_weights_", "tokenizer_class", "transformers.js_config",
        "transformers_version",
    ),
    "repeats a part of the config.json, under an old name": ("text_config_dict", "vision_config_dict"),
    "heads that guess further tokens, whose weights are not read": ("mtp_num_hidden_layers",),
    "the inverse of id2label": ("label2id",),
    "repeats the number of labels": ("_num_labels",),
    "Python code in the folder, which is never run": ("auto_map",),
    "a text that a transformers pipeline puts before the input; here the caller does that": ("prefix",),
    "an activation that a cross-encoder wrapper applies to the logits": ("sbert_ce_default_activation_function",),
    "an option of the original implementation that transformers does not implement": (
        "directionality", "extra_pos_embeddings", "pooler_fc_size", "pooler_num_attention_heads", "down_scale_factor",
        "gap_size", "net_structure_type", "num_memory_blocks", "pooler_num_fc_layers", "pooler_size_per_head",
        "pooler_type", "predict_special_tokens", "norm_before_gate", "rms_norm",
    ),
    "used by GPT-2's double-heads model only, for which `read` checks it": (
        "summary_activation", "summary_proj_to_labels", "summary_type", "summary_use_proj",
    ),
    "superseded by another key of the family": (
        "_sliding_window_pattern", "hidden_act", "is_decoder", "layer_norm_eps", "original_max_position_embeddings",
        "sliding_window_pattern",
    ),
    "a token id that the tokenizer files define": ("cls_token_id", "sep_token_id", "unk_token_id"),
}  # fmt: skip
"""Each reason with its keys, for the families that list the key as harmless."""

WHY: Mapping[str, str] = {key: reason for reason, keys in REASONS.items() for key in keys}
"""The reason of each key."""
