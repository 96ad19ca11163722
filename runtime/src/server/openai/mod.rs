//! OpenAI's API, and what vLLM adds to it: parameters, handlers, answers. No model code.

mod answer;
mod chat;
mod completions;
mod embeddings;
mod fields;
mod generate;
mod logprobs;
mod messages;
mod models;
mod parameters;
mod responses;
mod structured;
mod telling;
mod tokens;
mod tools;
mod traced;

pub(crate) use chat::create as create_chat_completion;
pub(crate) use completions::create as create_completion;
pub(crate) use embeddings::create as create_embeddings;
pub(crate) use fields::{Fields, invalid};
pub(crate) use models::{list as list_models, retrieve as retrieve_model};
pub(crate) use responses::create as create_response;
pub(crate) use tokens::{detokenize, tokenize};
