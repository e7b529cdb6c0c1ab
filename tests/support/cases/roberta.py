"""RoBERTa with every head it has; padding tokens of several ids, which shift the table of positions."""

from battery import Case

from cases.bert import NUMBERS, SEVERAL, SIZES

TOKENS = SIZES | {"pad_token_id": 1, "bos_token_id": 0, "type_vocab_size": 1}

DECODER = TOKENS | {"is_decoder": True}


def _case(name, head, **changes):
    # transformers pools the first slot even where it is padding
    pooled = head in ("ForSequenceClassification", "ForMultipleChoice")
    settings = TOKENS | changes
    return Case(
        f"roberta {name}", f"Roberta{head}", "RobertaConfig", settings, left_padding=not pooled, counts_tokens=True
    )


CASES = [
    _case("masked", "ForMaskedLM"),
    _case("odd sizes", "ForMaskedLM", hidden_size=42, num_attention_heads=3, intermediate_size=37, hidden_act="relu"),
    _case("padding of id 0", "ForMaskedLM", pad_token_id=0, bos_token_id=1, type_vocab_size=2),
    _case("untied", "ForMaskedLM", tie_word_embeddings=False),
    _case("decoder", "ForCausalLM", is_decoder=True),
    _case("tight table", "ForMaskedLM", max_position_embeddings=21),
    _case("body", "Model"),
    _case("classifier", "ForSequenceClassification", num_labels=3),
    _case("regression", "ForSequenceClassification", num_labels=1),
    _case("several labels", "ForSequenceClassification", **SEVERAL),
    _case("several numbers", "ForSequenceClassification", **NUMBERS),
    _case("tagger", "ForTokenClassification", num_labels=2),
    _case("spans", "ForQuestionAnswering"),
    _case("choices", "ForMultipleChoice"),
    *(
        Case(f"{name} {head}", f"{stem}{head}", f"{stem}Config", TOKENS, counts_tokens=True)
        for name, stem in (("xlm-roberta", "XLMRoberta"), ("camembert", "Camembert"))
        for head in ("ForMaskedLM", "ForTokenClassification", "Model")
    ),
    *(
        Case(
            f"{name} decoder", f"{stem}ForCausalLM", f"{stem}Config", TOKENS | {"is_decoder": True}, counts_tokens=True
        )
        for name, stem in (("xlm-roberta", "XLMRoberta"), ("camembert", "Camembert"))
    ),
]
