//! stub
/// What a chat template is rendered with.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatInput {
    /// A list of objects with `role` and `content`, as the client sent them.
    pub messages: serde_json::Value,
    /// A list of tool definitions.
    pub tools: Option<serde_json::Value>,
    /// Whether the text ends with the opening of the assistant's answer.
    pub add_generation_prompt: bool,
}
/// Why a conversation could not be rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template itself refused the conversation: the client's mistake.
    #[error("the chat template refused the conversation: {0}")]
    Raised(String),
    /// The work or the text grew over the limit.
    #[error("the chat template exceeded its limits")]
    Limit,
    /// Anything else.
    #[error("the chat template failed: {0}")]
    Other(String),
}
/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {}
impl ChatTemplate {
    /// Renders a conversation.
    pub fn render(&self, _input: &ChatInput) -> Result<String, TemplateError> {
        todo!()
    }
}
