"""Chat templates as data: Jinja in the Hugging Face format, with the assistant's part marked.

`{% generation %} … {% endgeneration %}` encloses what the assistant says, the end-of-turn token included, so that a
model learns to stop. The line break after the end-of-turn token is outside: no model generates it. The assistant's
leading white space is dropped, so that a rendered prompt is always the beginning of the rendered conversation,
token by token.

Formats: ChatML as in OpenAI's chat markup with Qwen 2.5's tool format and Qwen 3's for reasoning, Llama 2 (Touvron et
al. 2023, arXiv 2307.09288), Llama 3 and 3.1 with its calls of functions (Dubey et al. 2024, arXiv 2407.21783), Gemma
(Gemma Team 2024, arXiv 2403.08295; a system message stands before the first turn, as Gemma 3's does), Phi-3 (Abdin et
al. 2024, arXiv 2404.14219), Alpaca (Taori et al. 2023), and a plain one that needs no token of its own. What a
checkpoint brings with it goes first.
"""

from __future__ import annotations

CHATML = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] in ['system', 'developer'] %}
        {{- messages[0]['content'] + '\\n\\n' }}
    {%- endif %}
    {{- '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n' }}
    {{- 'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' + (tool | tojson) }}
    {%- endfor %}
    {{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments ' }}
    {{- 'within <tool_call></tool_call> XML tags:\\n<tool_call>\\n' }}
    {{- '{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message['role'] in ['system', 'developer'] and tools and loop.first %}
    {%- elif message['role'] == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
        {%- if message['reasoning_content'] is string %}
            {{- '<think>\\n' + message['reasoning_content'].strip() + '\\n</think>\\n\\n' }}
        {%- endif %}
        {%- if message['content'] %}
            {{- message['content'].lstrip() }}
        {%- endif %}
        {%- for call in message['tool_calls'] or [] %}
            {%- set call = call['function'] or call %}
            {%- if message['content'] or not loop.first %}
                {{- '\\n' }}
            {%- endif %}
            {{- '<tool_call>\\n{"name": "' + call['name'] + '", "arguments": ' }}
            {{- call['arguments'] if call['arguments'] is string else (call['arguments'] | tojson) }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- elif message['role'] in ['tool', 'function'] %}
        {%- if loop.first or messages[loop.index0 - 1]['role'] not in ['tool', 'function'] %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- (message['content'] | tojson) if message['content'] is mapping else message['content'] }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1]['role'] not in ['tool', 'function'] %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- elif message['role'] in ['system', 'developer', 'user'] %}
        {{- '<|im_start|>' + ('user' if message['role'] == 'user' else 'system') + '\\n' }}
        {{- message['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- raise_exception('role ' + message['role'] + ': allowed are system, user, assistant, tool') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA_3 = """\
{{- bos_token }}
{%- set system = '' %}
{%- if messages[0]['role'] in ['system', 'developer'] %}
    {%- set system = messages[0]['content'].strip() %}
    {%- set messages = messages[1:] %}
    {%- set told = true %}
{%- endif %}
{%- if told or tools %}
    {{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
    {%- if tools %}
        {{- 'Environment: ipython\\n' }}
    {%- endif %}
    {{- system }}
    {%- if tools %}
        {{- ('\\n\\n' if system else '') + 'These functions can be called. To call one, answer with nothing but ' }}
        {{- 'a JSON object: {"name": its name, "parameters": an object of its arguments}.\\n' }}
        {%- for tool in tools %}
            {{- '\\n' + (tool | tojson) }}
        {%- endfor %}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endif %}
{%- for message in messages %}
    {%- set names = {'developer': 'system', 'tool': 'ipython', 'function': 'ipython'} %}
    {%- set role = names[message['role']] or message['role'] %}
    {%- if role not in ['system', 'user', 'assistant', 'ipython'] %}
        {{- raise_exception('role ' + message['role'] + ': allowed are system, user, assistant, tool') }}
    {%- endif %}
    {{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}
        {%- if message['content'] %}
            {{- message['content'].strip() }}
        {%- endif %}
        {%- for call in message['tool_calls'] or [] %}
            {%- set call = call['function'] or call %}
            {%- if message['content'] or not loop.first %}
                {{- '\\n' }}
            {%- endif %}
            {{- '{"name": "' + call['name'] + '", "parameters": ' }}
            {{- call['arguments'] if call['arguments'] is string else (call['arguments'] | tojson) }}
            {{- '}' }}
        {%- endfor %}
        {{- '<|eot_id|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- (message['content'] | tojson) if message['content'] is mapping else message['content'].strip() }}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

LLAMA_2 = """\
{%- set system = '' %}
{%- if messages[0]['role'] in ['system', 'developer'] %}
    {%- set system = '<<SYS>>\\n' + messages[0]['content'].strip() + '\\n<</SYS>>\\n\\n' %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- if message['role'] != ('user' if loop.index0 is even else 'assistant') %}
        {{- raise_exception('role ' + message['role'] + ': user and assistant must take turns, the user first') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + (system if loop.first else '') + message['content'].strip() + ' [/INST]' }}
    {%- else %}
        {%- generation %}{{- ' ' + message['content'].strip() + ' ' + eos_token }}{%- endgeneration %}
    {%- endif %}
{%- endfor %}
"""

GEMMA = """\
{{- bos_token }}
{%- set system = '' %}
{%- if messages[0]['role'] in ['system', 'developer'] %}
    {%- set system = messages[0]['content'].strip() + '\\n\\n' %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- if message['role'] != ('user' if loop.index0 is even else 'assistant') %}
        {{- raise_exception('role ' + message['role'] + ': user and assistant must take turns, the user first') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- '<start_of_turn>user\\n' + (system if loop.first else '') }}
        {{- message['content'].strip() + '<end_of_turn>\\n' }}
    {%- else %}
        {{- '<start_of_turn>model\\n' }}
        {%- generation %}{{- message['content'].strip() + '<end_of_turn>' }}{%- endgeneration %}
        {{- '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\\n' }}
{%- endif %}
"""

PHI_3 = """\
{%- for message in messages %}
    {%- if message['role'] not in ['system', 'developer', 'user', 'assistant'] %}
        {{- raise_exception('role ' + message['role'] + ': allowed are system, user, assistant') }}
    {%- endif %}
    {{- '<|' + ('system' if message['role'] == 'developer' else message['role']) + '|>\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{- message['content'].lstrip() + '<|end|>' }}{%- endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- message['content'] + '<|end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\\n' }}
{%- endif %}
"""

ALPACA = """\
{%- for message in messages %}
    {%- if message['role'] in ['system', 'developer'] %}
        {{- message['content'] + '\\n\\n' }}
    {%- elif message['role'] == 'user' %}
        {%- if loop.first %}
            {{- 'Below is an instruction that describes a task. ' }}
            {{- 'Write a response that appropriately completes the request.\\n\\n' }}
        {%- endif %}
        {{- '### Instruction:\\n' + message['content'] + '\\n\\n' }}
    {%- elif message['role'] == 'assistant' %}
        {{- '### Response:\\n' }}
        {%- generation %}{{- message['content'].lstrip() + eos_token }}{%- endgeneration %}
        {{- '\\n\\n' }}
    {%- else %}
        {{- raise_exception('role ' + message['role'] + ': allowed are system, user, assistant') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '### Response:\\n' }}
{%- endif %}
"""

PLAIN = """\
{%- for message in messages %}
    {%- if message['role'] in ['system', 'developer'] %}
        {{- message['content'] + '\\n\\n' }}
    {%- elif message['role'] == 'user' %}
        {{- 'User: ' + message['content'] + '\\n' }}
    {%- elif message['role'] == 'assistant' %}
        {{- 'Assistant:' }}
        {%- generation %}{{- ' ' + message['content'].lstrip() + eos_token }}{%- endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- raise_exception('role ' + message['role'] + ': allowed are system, user, assistant') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'Assistant:' }}
{%- endif %}
"""

#: Name -> template source.
TEMPLATES: dict[str, str] = {
    "chatml": CHATML,
    "llama-2": LLAMA_2,
    "llama-3": LLAMA_3,
    "gemma": GEMMA,
    "phi-3": PHI_3,
    "alpaca": ALPACA,
    "plain": PLAIN,
}

#: Name -> the tokens that a tokenizer must know for that template, the end-of-turn token last.
TEMPLATE_TOKENS: dict[str, tuple[str, ...]] = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama-2": (),
    "llama-3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "phi-3": ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    "alpaca": (),
    "plain": (),
}

#: Tokens that end a turn in the public chat formats; those that a tokenizer knows stop generation.
END_OF_TURN_TOKENS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>")
