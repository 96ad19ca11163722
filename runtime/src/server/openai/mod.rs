//! OpenAI's API: parameters, handlers, answers. No model code.

mod answer;
mod chat;
mod completions;
mod fields;
mod generate;
mod messages;
mod models;
mod parameters;

pub(crate) use chat::create as create_chat_completion;
pub(crate) use completions::create as create_completion;
pub(crate) use models::{list as list_models, retrieve as retrieve_model};
