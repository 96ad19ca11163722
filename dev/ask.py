"""Asks a model one question with the official OpenAI client and prints the answer as it comes.

    ask.py BASE_URL MODEL QUESTION
"""

import sys
import time

import openai

base_url, model, question = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)
print(f"> {question}")
start = time.monotonic()
first = None
stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": question}],
    max_tokens=96,
    temperature=0,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    if chunk.choices and chunk.choices[0].delta.content:
        first = first or time.monotonic()
        print(chunk.choices[0].delta.content, end="", flush=True)
    if chunk.usage:
        usage = chunk.usage
seconds = time.monotonic() - start
print()
print(
    f"({usage.prompt_tokens} prompt and {usage.completion_tokens} answer tokens, "
    f"first after {first - start:.2f} s, all after {seconds:.2f} s; {chunk.system_fingerprint})"
)
