"""Keys that the files of a model folder may have, by the classes of transformers and PEFT."""

from __future__ import annotations

CONFIG_KEYS = tuple(
    """activation_function architectures attention_bias attention_dropout attn_logit_softcapping auto_map bos_token_id
    classifier_activation cross_attention d_ff d_model decoder_start_token_id dtype encoder_no_repeat_ngram_size
    eos_token_id ffn_dim final_logit_softcapping forced_bos_token_id forced_eos_token_id global_attn_every_n_layers
    head_dim hidden_act hidden_size id2label initializer_range intermediate_size is_decoder label2id layer_norm_eps
    layer_types local_attention max_position_embeddings max_window_layers min_length mlp_bias model_type n_embd
    n_head n_inner n_layer no_repeat_ngram_size num_attention_heads num_beams num_heads num_hidden_layers
    num_key_value_heads num_labels num_layers pad_token_id partial_rotary_factor position_embedding_type
    problem_type quantization_config query_pre_attn_scalar relative_attention_num_buckets repetition_penalty
    rms_norm_eps rope_parameters rope_scaling rope_theta sliding_window suppress_tokens task_specific_params
    temperature tie_word_embeddings torch_dtype type_vocab_size use_cache use_qk_norm use_sliding_window
    vocab_size""".split()
)

ADAPTER_KEYS = tuple(
    """alora_invocation_tokens alpha alpha_pattern arrow_config base_model_name_or_path bias corda_config
    decompose_both decompose_factor encoder_hidden_size encoder_reparameterization_type eva_config exclude_modules
    fan_in_fan_out feedforward_modules inference_mode init_lora_weights init_weights layer_replication
    layers_pattern layers_to_transform loftq_config lora_alpha lora_bias lora_dropout megatron_config module_dropout
    modules_to_save num_attention_heads num_layers num_virtual_tokens peft_type prompt_tuning_init
    prompt_tuning_init_text qalora_group_size r rank_dropout rank_pattern revision runtime_config target_modules
    target_parameters task_type token_dim trainable_token_indices use_dora use_effective_conv2d use_qalora
    use_rslora""".split()
)

GENERATION_KEYS = tuple(
    """assistant_confidence_threshold bad_words_ids begin_suppress_tokens bos_token_id cache_implementation constraints
    decoder_start_token_id diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    encoder_repetition_penalty eos_token_id epsilon_cutoff eta_cutoff exponential_decay_length_penalty
    force_words_ids forced_bos_token_id forced_eos_token_id guidance_scale length_penalty max_length max_new_tokens
    max_time min_length min_new_tokens min_p no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_scores pad_token_id penalty_alpha prompt_lookup_num_tokens remove_invalid_values renormalize_logits
    repetition_penalty sequence_bias stop_strings suppress_tokens temperature token_healing top_h top_k top_p
    typical_p use_cache watermarking_config""".split()
)

TOKENIZER_KEYS = tuple(
    """add_bos_token add_eos_token add_prefix_space added_tokens_decoder additional_special_tokens bos_token
    chat_template clean_up_tokenization_spaces cls_token do_lower_case do_basic_tokenize eos_token errors
    extra_special_tokens extra_ids legacy mask_token max_length model_input_names model_max_length pad_token
    padding_side sep_token separate_vocabs source_lang sp_model_kwargs spaces_between_special_tokens
    split_special_tokens strip_accents target_lang tokenize_chinese_chars tokenizer_class truncation_side unk_token
    use_default_system_prompt use_fast""".split()
)
