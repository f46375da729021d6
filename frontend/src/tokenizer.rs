//! Text to token ids and back, as the model's `tokenizer.json` says.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;
use thiserror::Error;

/// Name of the tokenizer in a model's directory.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// Name of the file beside it that says whether texts begin with a token.
const SETTINGS_FILE: &str = "tokenizer_config.json";

/// Longest file accepted, in bytes.
const MAX_BYTES: u64 = 512 << 20;

/// Why text could not be turned into tokens or back. Every message is complete.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum TokenizerError {
    #[error("{}: no tokenizer there; give the prompt as token ids with --tokens, or copy the model's {TOKENIZER_FILE}", .path.display())]
    Missing { path: PathBuf },
    #[error("{}: cannot read it: {error}", .path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{}: not a tokenizer: {detail}; copy the model's file again, or give the prompt with --tokens", .path.display())]
    Bad { path: PathBuf, detail: String },
    #[error(
        "{}: has token ids up to {largest}, but the model's vocab_size is {vocab}; \
         the tokenizer and the model do not belong together", .path.display()
    )]
    TooLarge { path: PathBuf, largest: u32, vocab: usize },
    #[error("{}: cannot encode the text: {detail}", .path.display())]
    Encode { path: PathBuf, detail: String },
    #[error("{}: cannot decode the tokens: {detail}", .path.display())]
    Decode { path: PathBuf, detail: String },
}

/// The tokenizer of one model.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    first: Option<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, given by its path or its directory's, for a model of `vocab` token ids.
    ///
    /// If `tokenizer_config.json` is beside it and says `add_bos_token`, texts are begun with its `bos_token`, as
    /// transformers does.
    pub fn load(path: &Path, vocab: usize) -> Result<Tokenizer, TokenizerError> {
        let path = if path.is_dir() { path.join(TOKENIZER_FILE) } else { path.to_path_buf() };
        let bytes = read(&path)?.ok_or_else(|| TokenizerError::Missing { path: path.clone() })?;
        let bad = |detail: String| TokenizerError::Bad { path: path.clone(), detail };
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|e| bad(e.to_string()))?;
        // What a file says about batches of training data has no place here.
        inner.with_truncation(None).map_err(|e| bad(e.to_string()))?;
        inner.with_padding(None);
        let Some(largest) = inner.get_vocab(true).into_values().max() else {
            return Err(bad("it has no tokens".into()));
        };
        if largest as usize >= vocab {
            return Err(TokenizerError::TooLarge { path, largest, vocab });
        }
        let first = first_token(&path.with_file_name(SETTINGS_FILE), &inner)?;
        Ok(Tokenizer { inner, path, first })
    }

    /// The token ids of a text. An empty text has none but those that begin every text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, true);
        let encoding = encoding
            .map_err(|e| TokenizerError::Encode { path: self.path.clone(), detail: e.to_string() })?;
        let ids = encoding.get_ids();
        let first = self.first.filter(|&first| ids.first() != Some(&first));
        Ok(first.into_iter().chain(ids.iter().copied()).collect())
    }

    /// The text of tokens. Special tokens and ids without a token have none; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        let decoded = self.inner.decode(ids, true);
        decoded.map_err(|e| TokenizerError::Decode { path: self.path.clone(), detail: e.to_string() })
    }

    /// The id of a token, such as `<|end▁of▁sentence|>`.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Decodes tokens as they come.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, ids: Vec::new(), context: 0, given: 0 }
    }
}

/// The text of tokens that come one by one: the pieces together are what [`Tokenizer::decode`] makes of all of them.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The tokens whose text is not finished, after some finished ones that they may join with.
    ids: Vec<u32>,
    /// So many of `ids` are finished.
    context: usize,
    /// Bytes of the text of the unfinished ones that were returned already.
    given: usize,
}

impl TextStream<'_> {
    /// Takes the next token and returns the text that is certain now. A character whose bytes lie in several tokens
    /// comes with the last of them.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        self.ids.push(id);
        let text = self.text()?;
        let open = unfinished(&text);
        let piece = self.since(&text[..text.len() - open]);
        if open == 0 && !text.is_empty() {
            self.ids.drain(..self.context);
            (self.context, self.given) = (self.ids.len(), 0);
        } else {
            self.given += piece.len();
        }
        Ok(piece)
    }

    /// The rest of the text: a character that was never finished, as U+FFFD.
    pub fn finish(mut self) -> Result<String, TokenizerError> {
        let text = self.text()?;
        Ok(self.since(&text))
    }

    /// The text of the unfinished tokens.
    fn text(&mut self) -> Result<String, TokenizerError> {
        let before = self.tokenizer.decode(&self.ids[..self.context])?;
        let mut all = self.tokenizer.decode(&self.ids)?;
        // Decoders that tidy up spaces may change the last finished character; what was returned stays.
        let at = before.len().min(all.len());
        Ok(if all.is_char_boundary(at) { all.split_off(at) } else { String::new() })
    }

    fn since(&self, text: &str) -> String {
        text.get(self.given..).unwrap_or_default().to_string()
    }
}

/// Bytes at the end of a text that more tokens may still change: a character of up to four bytes, the missing ones
/// shown as up to three U+FFFD.
fn unfinished(text: &str) -> usize {
    let marks = text.chars().rev().take(3).take_while(|&c| c == char::REPLACEMENT_CHARACTER).count();
    marks * char::REPLACEMENT_CHARACTER.len_utf8()
}

/// The bytes of a regular file; `None` if there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>, TokenizerError> {
    let fail = |error| TokenizerError::Io { path: path.to_path_buf(), error };
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(fail(e)),
    };
    if !metadata.is_file() {
        return Err(fail(io::Error::other("not a regular file")));
    }
    if metadata.len() > MAX_BYTES {
        return Err(fail(io::Error::other(format!(
            "it has {} bytes, more than {MAX_BYTES}",
            metadata.len()
        ))));
    }
    fs::read(path).map(Some).map_err(fail)
}

/// The token that begins every text, if the settings ask for one.
fn first_token(path: &Path, inner: &tokenizers::Tokenizer) -> Result<Option<u32>, TokenizerError> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    let bad = |detail: String| TokenizerError::Bad { path: path.to_path_buf(), detail };
    let settings: Value = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
    if settings.get("add_bos_token") != Some(&Value::Bool(true)) {
        return Ok(None);
    }
    let token = match settings.get("bos_token") {
        Some(Value::Object(token)) => token.get("content"),
        token => token,
    };
    let Some(token) = token.and_then(Value::as_str) else {
        return Err(bad("add_bos_token is true, but bos_token does not say which token".into()));
    };
    match inner.token_to_id(token) {
        Some(id) => Ok(Some(id)),
        None => Err(bad(format!("its bos_token `{}` is not in {TOKENIZER_FILE}", token.escape_debug()))),
    }
}
