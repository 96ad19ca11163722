//! The writes of children that few objects have: overlay files, a budget, a monitor, annotations of pods.
//!
//! Files come before pods, because a pod does not start without them; the rest comes after, since pods matter more.

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::DynamicObject;
use kube::core::PartialObjectMetaExt as _;
use kube::{Api, ResourceExt as _};

use super::apply::{Error, failed, remove};
use super::build::{Annotation, Surroundings};
use super::dependencies::pod_monitor_kind;
use super::observe::is_owned;
use crate::context::Context;
use crate::kube_ext::apply::{CallError, annotate, apply as apply_object, create, within};
use crate::world::trim::trim;

/// Writes what pods need in order to start.
///
/// # Errors
/// With the first write that failed.
pub(super) async fn before_pods(ctx: &Context, namespace: &str, surroundings: &Surroundings) -> Result<(), Error> {
    for files in &surroundings.files {
        let config_maps: Api<ConfigMap> = Api::namespaced(ctx.client.clone(), namespace);
        let written =
            apply_files(&config_maps, files)
                .await
                .map_err(failed("apply", "ConfigMap", &files.name_any()))?;
        let mut written = written.metadata.into_response_partial();
        trim(&mut written);
        ctx.world.snapshots.created(written);
        ctx.metrics.wrote("apply", "ConfigMap");
    }
    Ok(())
}

/// Writes the rest: nothing of it keeps pods from being made.
///
/// # Errors
/// With the first write that failed.
pub(super) async fn after_pods(ctx: &Context, namespace: &str, surroundings: &Surroundings) -> Result<(), Error> {
    let Surroundings {
        files: _,
        delete_files,
        budget,
        delete_budget,
        monitor,
        delete_monitor,
        annotate,
    } = surroundings;
    let config_maps: Api<ConfigMap> = Api::namespaced(ctx.client.clone(), namespace);
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(ctx.client.clone(), namespace);
    let monitors: Api<DynamicObject> = Api::namespaced_with(ctx.client.clone(), namespace, &pod_monitor_kind());
    if let Some(budget) = budget {
        let mut written =
            apply_object(&budgets, budget)
                .await
                .map_err(failed("apply", "PodDisruptionBudget", &budget.name_any()))?;
        trim(&mut written);
        ctx.world.budgets.created(written);
        ctx.metrics.wrote("apply", "PodDisruptionBudget");
    }
    if let Some(budget) = delete_budget {
        remove(ctx, &budgets, "PodDisruptionBudget", budget).await?;
    }
    for files in delete_files {
        remove(ctx, &config_maps, "ConfigMap", files).await?;
    }
    annotate_pods(ctx, namespace, annotate).await?;
    if let Some(monitor) = monitor {
        match apply_object(&monitors, monitor).await {
            Ok(_) => ctx.metrics.wrote("apply", "PodMonitor"),
            // The kind went a moment ago: that is no failure, and the next pass knows.
            Err(error) if error.status().is_some_and(|status| status.code == 404) => ctx.pod_monitor_kind.forget(),
            Err(error) => return Err(failed("apply", "PodMonitor", &monitor.name_any())(error)),
        }
    }
    if let Some(monitor) = delete_monitor {
        remove(ctx, &monitors, "PodMonitor", monitor).await?;
    }
    Ok(())
}

/// A snapshot that was not seen may be there all the same: of ours when its record was deleted by hand, else of
/// somebody whose data must stay.
async fn apply_files(api: &Api<ConfigMap>, files: &ConfigMap) -> Result<ConfigMap, CallError> {
    let name = files.name_any();
    let owner = files.owner_references().first().map(|owner| owner.uid.clone());
    if let Some(there) = within(api.get_opt(&name)).await?
        && !is_owned(there.owner_references(), owner.as_deref().unwrap_or_default())
    {
        return create(api, files).await;
    }
    apply_object(api, files).await
}

async fn annotate_pods(ctx: &Context, namespace: &str, annotations: &[Annotation]) -> Result<(), Error> {
    let pods: Api<Pod> = Api::namespaced(ctx.client.clone(), namespace);
    for Annotation { pod, key, value } in annotations {
        let was_there = annotate(&pods, pod, key, value)
            .await
            .map_err(failed("patch", "Pod", &pod.name))?;
        if was_there {
            ctx.metrics.wrote("patch", "Pod");
        }
    }
    Ok(())
}
