//! Events: one for each condition that changed, from this one function. A lost event is only logged: conditions are
//! what counts.

use escadre_crds::LlmDeployment;
use escadre_crds::condition::ConditionType;
use futures::future::join_all;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::events::{Event, EventType};
use kube::{Resource as _, ResourceExt as _};

use crate::context::Context;
use crate::kube_ext::apply::within;

/// Conditions that are told. The others say the same thing for other readers.
const TOLD: [ConditionType; 6] = [
    ConditionType::Accepted,
    ConditionType::ModelResolved,
    ConditionType::ModelVerified,
    ConditionType::CapacityAvailable,
    ConditionType::Ready,
    ConditionType::Degraded,
];

/// The API server takes 1024 bytes.
const NOTE_LIMIT: usize = 1000;

/// Reasons that are steps on the way, not problems.
const STEPS: [&str; 11] = [
    "Downloading",
    "Starting",
    "Verifying",
    "Loading",
    "Recreating",
    "RollingOut",
    "Paused",
    "Scaling",
    "Pending",
    "ScaledToZero",
    "Suspended",
];

/// Publishes what changed.
pub async fn publish(ctx: &Context, object: &LlmDeployment, before: &[Condition], after: &[Condition]) {
    let reference = object.object_ref(&());
    let events = changes(before, after);
    let published = events.iter().map(async |event| {
        if let Err(error) = within(ctx.recorder.publish(event, &reference)).await {
            tracing::debug!(object = %object.name_any(), error = &error as &dyn std::error::Error, "event not published");
        }
    });
    join_all(published).await;
}

/// The events for what changed, each sentence once. Pure.
fn changes(before: &[Condition], after: &[Condition]) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    for type_ in TOLD {
        let name: &str = type_.into();
        let Some(now) = after.iter().find(|one| one.type_ == name) else {
            continue;
        };
        let was = before.iter().find(|one| one.type_ == name);
        let is_news = was.is_none_or(|was| was.status != now.status || was.reason != now.reason);
        let bad = if type_ == ConditionType::Degraded {
            "True"
        } else {
            "False"
        };
        let is_bad = now.status == bad;
        // That something is well is news when it was not before, and that the model is served always.
        let is_as_hoped = !is_bad && type_ != ConditionType::Ready && was.is_none_or(|was| was.status != bad);
        let is_quiet =
            now.status == "Unknown" || (type_ == ConditionType::Degraded && now.status == "False") || is_as_hoped;
        let mut note = now.message.clone();
        note.truncate(note.floor_char_boundary(NOTE_LIMIT));
        let is_told = events.iter().any(|event| event.note.as_ref() == Some(&note));
        if !is_news || is_quiet || is_told {
            continue;
        }
        let is_problem = is_bad && !STEPS.contains(&now.reason.as_str());
        events.push(Event {
            type_: if is_problem {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: now.reason.clone(),
            note: Some(note),
            action: format!("{}{}", now.type_, now.status),
            secondary: None,
        });
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    fn condition(type_: &str, status: &str, reason: &str) -> Condition {
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: "é".repeat(900),
            observed_generation: Some(1),
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
        }
    }

    #[test]
    fn only_changes_are_told() {
        let before = [
            condition("Ready", "False", "Downloading"),
            condition("Accepted", "True", "Valid"),
        ];
        let after = [
            condition("Ready", "False", "CrashLoop"),
            condition("Accepted", "True", "Valid"),
            condition("Stalled", "True", "CrashLoop"),
            condition("ModelVerified", "Unknown", "Pending"),
        ];
        let events = changes(&before, &after);
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].reason, "CrashLoop");
        assert_eq!(events[0].type_, EventType::Warning);
        assert!(events[0].note.as_ref().unwrap().len() <= NOTE_LIMIT);
    }

    #[test]
    fn degraded_is_told_only_when_it_is_true() {
        assert!(changes(&[], &[condition("Degraded", "False", "Serving")]).is_empty());
        let events = changes(&[], &[condition("Degraded", "True", "CrashLoop")]);
        assert_eq!(events[0].type_, EventType::Warning);
    }

    #[test]
    fn what_is_well_from_the_beginning_is_not_told_but_for_ready() {
        let after = [
            condition("Accepted", "True", "Valid"),
            condition("Ready", "True", "Serving"),
        ];
        let events = changes(&[], &after);
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].reason, "Serving");
        let unknown = [condition("Accepted", "Unknown", "Pending"), after[1].clone()];
        assert!(changes(&unknown, &after).is_empty(), "it was only not known before");
        let before = [condition("Accepted", "False", "InvalidSpec"), after[1].clone()];
        assert_eq!(changes(&before, &after)[0].reason, "Valid", "it was not well before");
    }

    #[test]
    fn one_sentence_is_told_once() {
        let after = [
            condition("ModelResolved", "False", "Downloading"),
            condition("Ready", "False", "Downloading"),
        ];
        assert_eq!(changes(&[], &after).len(), 1);
    }

    #[test]
    fn steps_are_not_warnings() {
        let events = changes(&[], &[condition("ModelResolved", "False", "Downloading")]);
        assert_eq!(events[0].type_, EventType::Normal);
    }
}
