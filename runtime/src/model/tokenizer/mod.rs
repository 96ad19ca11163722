//! stub
/// How text that looks like a special token is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// It becomes the token: for text that our own template rendered.
    Parse,
    /// It stays text: for what a client wrote.
    AsText,
}
/// Why text could not be encoded.
#[derive(Debug, thiserror::Error)]
#[error("could not tokenize: {0}")]
pub struct TokenizerError(pub String);
/// The tokenizer.
#[derive(Debug)]
pub struct Tokenizer {}
impl Tokenizer {
    /// Text to token ids, without [`Tokenizer::prefix`].
    pub fn encode(&self, _text: &str, _special: SpecialTokens) -> Result<Vec<u32>, TokenizerError> {
        todo!()
    }
    /// What the model wants before every text: its begin token, or nothing.
    pub fn prefix(&self) -> &[u32] {
        todo!()
    }
    /// The bytes that a token stands for; absent for ids outside the vocabulary.
    pub fn token_bytes(&self, _id: u32) -> Option<&[u8]> {
        todo!()
    }
    /// Whether a token is a control token, which never appears in an answer's text.
    pub fn is_control(&self, _id: u32) -> bool {
        todo!()
    }
    /// A decoder for one stream of tokens.
    pub fn decoder(&self) -> StreamDecoder {
        todo!()
    }
    /// How many tokens there are.
    pub fn vocabulary(&self) -> usize {
        todo!()
    }
}
/// Decodes one stream.
#[derive(Debug)]
pub struct StreamDecoder {}
impl StreamDecoder {
    /// The text that this token completes.
    pub fn push(&mut self, _id: u32) -> String {
        todo!()
    }
    /// What is left.
    pub fn finish(&mut self) -> String {
        todo!()
    }
}
