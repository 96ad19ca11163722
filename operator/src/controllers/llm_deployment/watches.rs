//! Every watch of the controller. Each feeds its cache as it goes, starts again by itself after a short pause, and never
//! ends: an API server that was away is heard again within seconds.

use std::sync::Arc;
use std::time::Duration;

use escadre_crds::{LlmDeployment, names};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::reflector::store::Writer;
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;

use super::is_edit;
use crate::context::Context;
use crate::world::cache::{Cache, Key, place};
use crate::world::trim::{trim, trim_pod};
use crate::world::{DeploymentRef, Wake, World};

/// The pause after the first failure of a watch in a row.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause: how long the operator may stay blind after the API server came back.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// An object that a watch tells of.
type Told<K> = Result<K, watcher::Error>;

/// The watch of the deployments. It feeds the store from which the controller takes them.
pub(super) fn deployments(
    ctx: &Arc<Context>,
    namespace: Option<&str>,
    writer: Writer<DeserializeGuard<LlmDeployment>>,
) -> impl Stream<Item = Told<DeserializeGuard<LlmDeployment>>> + use<> {
    let told = Arc::clone(ctx);
    let events = watcher(scoped(ctx, namespace), watcher::Config::default())
        .backoff(Pause::default())
        .modify(|object: &mut DeserializeGuard<LlmDeployment>| trim(object))
        .reflect(writer)
        .inspect_ok(move |event| {
            if let watcher::Event::Apply(guard) = event
                && let Ok(object) = &guard.0
                && is_edit(object)
            {
                told.turns.edited(&place(object));
            }
        })
        .touched_objects();
    without_failures(events)
}

/// The watch of pods. It feeds the cache and the poller.
pub(super) fn pods(ctx: &Arc<Context>, namespace: Option<&str>, wake: &Wake) -> impl Stream<Item = Told<Pod>> + use<> {
    let (api, ctx, wake) = (scoped(ctx, namespace), Arc::clone(ctx), wake.clone());
    let events = watcher(api, labelled())
        .backoff(Pause::default())
        .modify(trim_pod)
        .inspect_ok(move |event| {
            ctx.world.poller.handle(event);
            wake_all(&wake, ctx.world.pods.handle(event));
        })
        .touched_objects();
    without_failures(events)
}

/// The watch of another kind of children. It feeds its cache.
pub(super) fn children<K>(
    ctx: &Arc<Context>,
    namespace: Option<&str>,
    wake: &Wake,
    cache: fn(&World) -> &Cache<K>,
) -> impl Stream<Item = Told<K>> + use<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    K: Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (api, ctx, wake) = (scoped(ctx, namespace), Arc::clone(ctx), wake.clone());
    let events = watcher(api, labelled())
        .backoff(Pause::default())
        .modify(trim)
        .inspect_ok(move |event| wake_all(&wake, cache(&ctx.world).handle(event)))
        .touched_objects();
    without_failures(events)
}

/// The watch of every ConfigMap, without contents and without a cache: it wakes those that name one.
pub(super) fn config_maps(
    ctx: &Context,
    namespace: Option<&str>,
) -> impl Stream<Item = Told<PartialObjectMeta<ConfigMap>>> + use<> {
    let events = watcher(scoped(ctx, namespace), watcher::Config::default())
        .backoff(Pause::default())
        .touched_objects();
    without_failures(events)
}

/// The deployment that an object's label names.
pub(super) fn deployment_of<K: Resource>(object: &K) -> Option<DeploymentRef> {
    let name = object.labels().get(names::LABEL_DEPLOYMENT)?;
    Some(ObjectRef::new(name).within(&object.namespace()?))
}

/// Objects with our label, whoever made them: a foreign pod that carries it must be seen.
fn labelled() -> watcher::Config {
    watcher::Config::default().labels(names::LABEL_DEPLOYMENT)
}

fn scoped<K>(ctx: &Context, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope>,
    K::DynamicType: Default,
{
    match namespace {
        Some(namespace) => Api::namespaced(ctx.client.clone(), namespace),
        None => Api::all(ctx.client.clone()),
    }
}

fn wake_all(wake: &Wake, deployments: Vec<Key>) {
    for (namespace, name) in deployments {
        // Without a controller there is nobody to wake: the process ends.
        let _controller_ended = wake.send(ObjectRef::new(&name).within(&namespace));
    }
}

/// Failures are logged here and go no further: the controller would hold up every watch for the failure of one.
fn without_failures<K>(told: impl Stream<Item = Told<K>>) -> impl Stream<Item = Told<K>> {
    told.filter_map(async |told| match told {
        Ok(object) => Some(Ok(object)),
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "watch failed, it starts again"
            );
            None
        }
    })
}

/// The pauses of one watch: each failure in a row doubles the next one, up to a limit.
#[derive(Clone, Debug)]
struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}

impl Iterator for Pause {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.0;
        self.0 = (pause * 2).min(LONGEST_PAUSE);
        Some(pause)
    }
}

impl Backoff for Pause {
    fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_start_again() {
        let mut pause = Pause::default();
        assert_eq!(pause.next(), Some(FIRST_PAUSE));
        assert_eq!(pause.next(), Some(FIRST_PAUSE * 2));
        assert_eq!(pause.nth(20), Some(LONGEST_PAUSE));
        pause.reset();
        assert_eq!(pause.next(), Some(FIRST_PAUSE));
    }
}
