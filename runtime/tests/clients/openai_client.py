"""The official Python client, unmodified, against the server whose base URL is the first argument."""

import sys
import typing

import openai
import pydantic

client = openai.OpenAI(base_url=sys.argv[1], api_key="unused", max_retries=0)
model = client.models.list().data[0].id
assert client.models.retrieve(model).id == model

messages = [
    {"role": "system", "content": "You are a sailor."},
    {"role": "user", "content": [{"type": "text", "text": "What is a sail?"}]},
]
options = {"model": model, "messages": messages, "max_tokens": 16, "temperature": 0, "seed": 7}
whole = client.chat.completions.create(**options)
text = whole.choices[0].message.content
assert whole.choices[0].finish_reason in ("stop", "length"), whole
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens, whole
assert whole.system_fingerprint.startswith("fp_"), whole

chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
assert streamed == text, (streamed, text)
assert chunks[0].choices[0].delta.role == "assistant", chunks[0]
assert chunks[-1].usage.total_tokens == whole.usage.total_tokens, chunks[-1]
long = {**options, "messages": [{"role": "user", "content": "again and " * 40}]}
cached = [client.chat.completions.create(**long).usage.prompt_tokens_details.cached_tokens for _ in range(2)]
assert cached[0] < 32 <= cached[1], cached

several = client.chat.completions.create(**{**options, "temperature": 1}, n=3)
assert [choice.index for choice in several.choices] == [0, 1, 2], several
assert len({choice.message.content for choice in several.choices}) > 1, several
assert several.usage.prompt_tokens == whole.usage.prompt_tokens, several
parts = {}
for chunk in client.chat.completions.create(**options, n=2, stream=True):
    for choice in chunk.choices:
        parts[choice.index] = parts.get(choice.index, "") + (choice.delta.content or "")
assert parts == {0: text, 1: text}, (parts, text)

# An answer can be sent back as it came.
messages += [whole.choices[0].message, {"role": "user", "content": "Go on."}]
assert client.chat.completions.create(model=model, messages=messages, max_completion_tokens=4).choices[0].message

plain = client.completions.create(model=model, prompt="One, two,", max_tokens=4, temperature=0)
parts = client.completions.create(model=model, prompt="One, two,", max_tokens=4, temperature=0, stream=True)
assert "".join(part.choices[0].text for part in parts) == plain.choices[0].text

# This helper takes an answer that was cut at its length for an error, so it ends at the first space.
with client.chat.completions.stream(model=model, messages=messages[:2], stop=[" "]) as stream:
    assert stream.get_final_completion().choices[0].message.content is not None

choice = client.chat.completions.create(**options, logprobs=True, top_logprobs=2).choices[0]
told = choice.logprobs.content
assert b"".join(bytes(token.bytes) for token in told).decode() == choice.message.content, choice
assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in told), told
scored = client.completions.create(model=model, prompt="One, two,", max_tokens=4, temperature=0, logprobs=1)
assert "".join(scored.choices[0].logprobs.tokens) == plain.choices[0].text, scored


class Ship(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=20)
    masts: typing.Literal[1, 2, 3]


ask = [{"role": "user", "content": "Describe a ship."}]
parsed = client.chat.completions.parse(model=model, messages=ask, temperature=0, max_tokens=100, response_format=Ship)
assert isinstance(parsed.choices[0].message.parsed, Ship), parsed


class Weather(pydantic.BaseModel):
    """The weather of a city."""

    model_config = pydantic.ConfigDict(extra="forbid")

    city: str = pydantic.Field(max_length=16)
    unit: typing.Literal["celsius", "fahrenheit"]


# The loop of every agent: a call, its result, an answer.
asked = {"model": model, "temperature": 0, "max_tokens": 120, "tools": [openai.pydantic_function_tool(Weather)]}
talk = [{"role": "user", "content": "How warm is it in Paris?"}]
called = client.chat.completions.create(**asked, messages=talk, tool_choice="required", parallel_tool_calls=False)
assert called.choices[0].finish_reason == "tool_calls", called
call = called.choices[0].message.tool_calls[0]
assert call.function.name == "Weather" and Weather.model_validate_json(call.function.arguments), call
talk += [called.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}]
assert client.chat.completions.create(**asked, messages=talk).choices[0].message
parsed = client.chat.completions.parse(**asked, messages=talk[:1], tool_choice="required", parallel_tool_calls=False)
assert isinstance(parsed.choices[0].message.tool_calls[0].function.parsed_arguments, Weather), parsed
events = []
with client.chat.completions.stream(**asked, messages=talk[:1], tool_choice={"type": "function", "function": {"name": "Weather"}}) as stream:
    for event in stream:
        events.append(event.type)
    final = stream.get_final_completion().choices[0].message.tool_calls[0]
assert final.function.arguments == call.function.arguments, (final, call)
assert "tool_calls.function.arguments.delta" in events and "tool_calls.function.arguments.done" in events, set(events)


# The newer API, in the helpers of the same client.
asking = {"model": model, "input": "What is a sail?", "temperature": 0, "max_output_tokens": 16}
response = client.responses.create(**asking)
assert response.output_text and response.usage.output_tokens == 16, response
with client.responses.stream(**asking) as stream:
    streamed = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
assert streamed == response.output_text, (streamed, response)
ship = client.responses.parse(model=model, input="Describe a ship.", max_output_tokens=100, temperature=0, text_format=Ship)
assert isinstance(ship.output_parsed, Ship), ship
tool = {"type": "function", "name": "weather", "parameters": Weather.model_json_schema(), "strict": False}
called = client.responses.create(**{**asking, "max_output_tokens": 100}, tools=[tool], tool_choice="required", parallel_tool_calls=False)
item = called.output[0]
assert item.type == "function_call" and Weather.model_validate_json(item.arguments), called
talk = [{"role": "user", "content": "How warm is it?"}, item, {"type": "function_call_output", "call_id": item.call_id, "output": "21"}]
assert client.responses.create(**{**asking, "input": talk}).output_text

# The client itself asks for Base64, and gives numbers back.
texts = ["A ship", "Another ship", "def f(x): return x"]
vectors = client.embeddings.create(model=model, input=texts)
assert [len(one.embedding) for one in vectors.data] == [576] * 3 and vectors.usage.total_tokens > 5, vectors
plain = client.embeddings.create(model=model, input=texts[0], encoding_format="float").data[0].embedding
assert max(abs(one - other) for one, other in zip(plain, vectors.data[0].embedding)) < 1e-3
assert abs(sum(value * value for value in plain) - 1) < 1e-3
assert len(client.embeddings.create(model=model, input=texts, dimensions=32).data[2].embedding) == 32


def refuses(kind, **changes):
    try:
        client.chat.completions.create(**{**options, **changes})
    except kind as error:
        assert error.body["message"], error
        return error
    raise AssertionError(f"{changes} was accepted")


assert refuses(openai.NotFoundError, model="other").code == "model_not_found"
assert refuses(openai.BadRequestError, n=99).param == "n"
assert refuses(openai.BadRequestError, extra_body={"typo": 1}).param == "typo"
assert refuses(openai.BadRequestError, extra_body={"guided_regex": "("}).code == "invalid_grammar"
assert refuses(openai.BadRequestError, max_tokens=10**6).code == "context_length_exceeded"
print("all good")
