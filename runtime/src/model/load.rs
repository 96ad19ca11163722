//! stub
use super::{LoadError, LoadOptions, Loaded};
use escadre_verify::VerifiedModel;

/// Loads a model.
pub fn load(
    _model: &VerifiedModel,
    _options: &LoadOptions,
    _progress: &mut dyn FnMut(u64, u64),
) -> Result<Loaded, LoadError> {
    todo!()
}
/// Exact.
pub fn load_exact(
    _model: &VerifiedModel,
    _options: &LoadOptions,
    _progress: &mut dyn FnMut(u64, u64),
) -> Result<Loaded, LoadError> {
    todo!()
}
