//! Creating and applying: server-side apply for everything but pods, which are created by POST because an applied
//! pod spec would restart containers or be refused.

use std::fmt::Debug;
use std::time::Duration;

use escadre_crds::names;
use kube::api::{Patch, PatchParams, PostParams, ValidationDirective};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::context::CALL_TIMEOUT;

/// Why a call had no result.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr)]
pub enum CallError {
    /// The API server, or the way to it, said no.
    #[error("the API server did not take the call")]
    Kube(#[source] Box<kube::Error>),
    /// It did not answer in time.
    #[error("the API server did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
}

impl CallError {
    /// The API server's own words, where it answered; ours otherwise. For users.
    pub fn words(&self) -> String {
        match self {
            Self::Kube(error) => match error.as_ref() {
                kube::Error::Api(status) => status.message.clone(),
                other => other.to_string(),
            },
            Self::Timeout(_) => self.to_string(),
        }
    }

    /// The answer of the API server, when there was one.
    pub fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Kube(error) => match error.as_ref() {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            Self::Timeout(_) => None,
        }
    }
}

/// Waits for a call, for at most [`CALL_TIMEOUT`].
///
/// # Errors
/// When the call fails or takes too long.
pub async fn within<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, CallError> {
    match timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(CallError::Kube(Box::new(error))),
        Err(_) => Err(CallError::Timeout(CALL_TIMEOUT)),
    }
}

/// Creates an object.
///
/// # Errors
/// When the call fails; an object of that name that is already there is an error too.
pub async fn create<K>(api: &Api<K>, object: &K) -> Result<K, CallError>
where
    K: Clone + Debug + DeserializeOwned + Serialize,
{
    let parameters = PostParams {
        field_manager: Some(names::FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    within(api.create(&parameters, object)).await
}

/// Applies the full desired state of an object.
///
/// # Errors
/// When the call fails.
pub async fn apply<K>(api: &Api<K>, object: &K) -> Result<K, CallError>
where
    K: Resource + Clone + Debug + DeserializeOwned + Serialize,
{
    let name = object.meta().name.clone().unwrap_or_default();
    within(api.patch(&name, &parameters(names::FIELD_MANAGER), &Patch::Apply(object))).await
}

/// Applies the full status of an object.
///
/// # Errors
/// When the call fails; a conflict when the object was changed since `resourceVersion` in `status` was read.
pub async fn apply_status<K>(api: &Api<K>, name: &str, status: &(impl Serialize + Debug)) -> Result<K, CallError>
where
    K: Clone + Debug + DeserializeOwned,
{
    let mut parameters = parameters(names::STATUS_MANAGER);
    // The API server has no field validation for the status of custom resources beside its schema.
    parameters.field_validation = None;
    within(api.patch_status(name, &parameters, &Patch::Apply(status))).await
}

fn parameters(manager: &str) -> PatchParams {
    PatchParams {
        field_validation: Some(ValidationDirective::Strict),
        ..PatchParams::apply(manager).force()
    }
}
