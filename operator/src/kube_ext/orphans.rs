//! Deleting. Every delete carries the UID: a late one of an operator that was replaced does no harm.

use std::fmt::Debug;

use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use serde::de::DeserializeOwned;

use super::apply::{CallError, within};

/// One object, by name and by identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// The name.
    pub name: String,
    /// The UID.
    pub uid: String,
}

/// Deletes an object. It is a success when the name is free already. Returns whether the API server took the delete.
///
/// # Errors
/// When the call fails otherwise. A conflict may mean that another object has the name now, or nothing at all: the next
/// pass looks again.
pub async fn delete<K>(api: &Api<K>, object: &Identity) -> Result<bool, CallError>
where
    K: Clone + Debug + DeserializeOwned,
{
    let parameters = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(object.uid.clone()),
            resource_version: None,
        }),
        ..DeleteParams::background()
    };
    match within(api.delete(&object.name, &parameters)).await {
        Ok(_) => Ok(true),
        Err(error) if error.status().is_some_and(kube::core::Status::is_not_found) => Ok(false),
        Err(error) => Err(error),
    }
}
