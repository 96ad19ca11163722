"""Writes what `transformers` renders with well-known chat templates: renderings.json has a SHA-256 for each conversation.

    pip install transformers==4.57.6 jinja2==3.1.6
    python make.py FOLDER

FOLDER has the templates that come with llama.cpp (`dev/templates.sh`). Conversations are those of conversations.json;
the test that compares reads the same file. A template that refuses a conversation has `null`.
"""

import hashlib
import json
import pathlib
import sys

from transformers.utils.chat_template_utils import render_jinja_template

HERE = pathlib.Path(__file__).parent
TEMPLATES = [
    "HuggingFaceTB-SmolLM3-3B",
    "Mistral-Small-3.2-24B-Instruct-2506",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "Qwen-QwQ-32B",
    "Qwen-Qwen2.5-7B-Instruct",
    "Qwen-Qwen3-0.6B",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
    "deepseek-ai-DeepSeek-V3.1",
    "google-gemma-2-2b-it",
    "meta-llama-Llama-3.1-8B-Instruct",
    "meta-llama-Llama-3.2-3B-Instruct",
    "meta-llama-Llama-3.3-70B-Instruct",
    "microsoft-Phi-3.5-mini-instruct",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "unsloth-mistral-Devstral-Small-2507",
]


def render(template, case):
    try:
        rendered, _ = render_jinja_template(
            conversations=[case["messages"]],
            tools=case.get("tools"),
            chat_template=template,
            add_generation_prompt=case.get("add_generation_prompt", True),
            bos_token="<s>",
            eos_token="</s>",
            # What would otherwise be today.
            date_string="26 Jul 2024",
        )
    except Exception as error:
        print(f"  {type(error).__name__}: {error}", file=sys.stderr)
        return None
    return rendered[0]


def main():
    folder = pathlib.Path(sys.argv[1])
    conversations = json.loads((HERE / "conversations.json").read_text())
    results = {}
    for name in TEMPLATES:
        print(name, file=sys.stderr)
        # Every day is this one.
        template = (folder / f"{name}.jinja").read_text().replace('strftime_now("%Y-%m-%d")', '"2026-11-28"')
        texts = {
            case: render(template, conversation)
            for case, conversation in conversations.items()
            # These are for conversations with tools only.
            if conversation.get("tools") or not name.endswith("tool_use")
        }
        results[name] = {
            case: text and hashlib.sha256(text.encode()).hexdigest() for case, text in texts.items()
        }
        if len(sys.argv) > 2:
            for case, text in texts.items():
                pathlib.Path(sys.argv[2], f"{name}.{case}").write_text(str(text))
    (HERE / "renderings.json").write_text(json.dumps(results, indent=1) + "\n")


main()
