//! Every condition, one function each. Pure: what comes in is the scene, what goes out are findings.

use escadre_crds::condition::{AnyReason, ConditionStatus, ConditionType, Finding, READY_ORDER, Reason};

use super::super::diagnose::{Problem, Progress, needs_a_person};
use super::super::plan::State;
use super::scene::{Scene, pending};
use escadre_crds::names;

use ConditionStatus::{False, True, Unknown};

/// All findings, in the order in which people read them.
pub(super) fn findings(scene: &Scene<'_>) -> Vec<Finding> {
    let mut findings = vec![
        accepted(scene),
        resolved(scene),
        verified(scene),
        capacity(scene),
        progressing(scene),
        available(scene),
    ];
    findings.push(ready(scene, &findings));
    findings.push(degraded(scene));
    let stalled = stalled(scene, &findings);
    findings.push(reconciling(scene, &findings, stalled.status == True));
    findings.push(stalled);
    findings
}

fn finding(
    condition: ConditionType,
    status: ConditionStatus,
    reason: impl Into<AnyReason>,
    message: String,
) -> Finding {
    Finding {
        condition,
        status,
        reason: reason.into(),
        message,
    }
}

fn from_problem(problem: &Problem) -> Finding {
    finding(problem.condition, False, problem.reason, problem.message.clone())
}

fn accepted(scene: &Scene<'_>) -> Finding {
    match &scene.outcome.rejected {
        Some(rejected) => finding(
            ConditionType::Accepted,
            False,
            rejected.reason,
            rejected.message.clone(),
        ),
        None => finding(
            ConditionType::Accepted,
            True,
            Reason::Valid,
            format!("the spec of {} is valid", scene.name()),
        ),
    }
}

fn resolved(scene: &Scene<'_>) -> Finding {
    let type_ = ConditionType::ModelResolved;
    if scene.mine().any(|pod| pod.is_serving() || pod.diagnosis.is_fetched) {
        let message = if scene.goal == scene.target {
            format!("the model was fetched from {}", scene.object.spec.model.source)
        } else {
            format!(
                "the model of revision {} was fetched",
                scene.goal.as_deref().unwrap_or_default()
            )
        };
        return finding(type_, True, Reason::Resolved, message);
    }
    if let Some(problem) = scene.problem(type_) {
        return from_problem(problem);
    }
    if scene.mine().any(|pod| pod.diagnosis.progress == Progress::Fetching) {
        let (_, message) = scene.activity();
        return finding(type_, False, Reason::Downloading, message);
    }
    let (reason, message) = pending("fetched the model");
    finding(type_, Unknown, reason, message)
}

fn verified(scene: &Scene<'_>) -> Finding {
    let type_ = ConditionType::ModelVerified;
    if let Some(problem) = scene.problem(type_) {
        return from_problem(problem);
    }
    if scene
        .mine()
        .any(|pod| pod.is_serving() || (pod.diagnosis.is_fetched && pod.is_verified()))
    {
        return finding(
            type_,
            True,
            Reason::Verified,
            format!("the process that loads the model found {}", scene.digest()),
        );
    }
    if scene.mine().any(|pod| pod.diagnosis.progress >= Progress::Verifying) {
        return finding(
            type_,
            Unknown,
            Reason::Verifying,
            "the model is being verified".to_owned(),
        );
    }
    let (reason, message) = pending("verified the model");
    finding(type_, Unknown, reason, message)
}

fn capacity(scene: &Scene<'_>) -> Finding {
    let type_ = ConditionType::CapacityAvailable;
    if let Some(problem) = scene.problem(type_) {
        return from_problem(problem);
    }
    let count = scene.mine().count();
    if count > 0 && scene.mine().all(|pod| pod.diagnosis.progress > Progress::Unscheduled) {
        return finding(
            type_,
            True,
            Reason::Scheduled,
            format!("every pod has a node ({count})"),
        );
    }
    let (reason, message) = pending("a node");
    finding(type_, Unknown, reason, message)
}

fn progressing(scene: &Scene<'_>) -> Finding {
    let type_ = ConditionType::Progressing;
    let name = scene.name();
    if let Some(rejected) = &scene.outcome.rejected {
        return finding(type_, False, rejected.reason, rejected.message.clone());
    }
    let work = scene.outcome.work.as_ref();
    if let Some(Err(error)) = work.map(|work| &work.applied) {
        let message = format!("{}; it is tried again", error.words());
        return finding(type_, False, Reason::ApplyFailed, message);
    }
    if let Some(message) = given_up(scene) {
        let reason = match scene.plan().map(|plan| &plan.state) {
            Some(State::Halted) => Reason::RolloutStopped,
            _ => Reason::RolledBack,
        };
        return finding(type_, False, reason, message);
    }
    if scene.is_settled() {
        return finding(
            type_,
            True,
            Reason::Complete,
            format!("{name} has what its spec asks for"),
        );
    }
    match scene.plan().map(|plan| &plan.state) {
        Some(State::RollingOut(message)) => return finding(type_, True, Reason::RollingOut, message.clone()),
        Some(State::Blocked(message)) => return finding(type_, False, Reason::Blocked, message.clone()),
        Some(State::Paused(message)) => return finding(type_, False, Reason::Paused, message.clone()),
        Some(State::Stalled(failure)) => {
            return finding(type_, False, Reason::ProgressDeadlineExceeded, failure.message.clone());
        }
        Some(State::Remaking) => {
            let message = format!("the pods of {name} are made again with its edited settings");
            return finding(type_, True, Reason::Recreating, message);
        }
        Some(State::Resting(rest)) => {
            let message = format!("a failed pod of {name} is replaced within {} s", rest.as_secs().max(10));
            return finding(type_, True, Reason::Scaling, message);
        }
        Some(State::Idle | State::Working | State::Failed | State::Halted | State::RolledBack(_)) | None => {}
    }
    let mine = scene.mine().count();
    if mine != scene.wanted && (scene.was_reached() || mine > scene.wanted) {
        let message = format!("{name} has {mine} of {} pods", scene.wanted);
        return finding(type_, True, Reason::Scaling, message);
    }
    let (reason, message) = scene.activity();
    finding(type_, True, reason, message)
}

/// What became of a revision that failed.
fn given_up(scene: &Scene<'_>) -> Option<String> {
    let (failed, why) = scene.failure()?;
    let next = "edit the spec, or set another spec.restartToken to try it again";
    Some(match scene.plan().map(|plan| &plan.state) {
        Some(State::RolledBack(share)) => {
            let goal = scene.goal.as_deref().unwrap_or_default();
            format!("revision {failed} failed ({why}); revision {goal} serves in its place: {share}; {next}")
        }
        _ => format!("revision {failed} failed ({why}); {next}"),
    })
}

fn available(scene: &Scene<'_>) -> Finding {
    let type_ = ConditionType::Available;
    let name = scene.name();
    if scene.is_suspended {
        let message = format!("{name} is suspended; set spec.suspend to false to serve again");
        return finding(type_, False, Reason::Suspended, message);
    }
    if scene.wanted == 0 {
        let message = format!("{name} is scaled to zero; set spec.replicas to serve again");
        return finding(type_, False, Reason::ScaledToZero, message);
    }
    let serving = scene.available();
    if serving >= scene.least_available() {
        return finding(
            type_,
            True,
            Reason::Serving,
            format!("{serving} of {} pods of {name} serve", scene.wanted),
        );
    }
    if let Some(refusal) = scene.refused() {
        return finding(type_, False, Reason::PodRefused, refused(refusal));
    }
    if let Some(problem) = scene.problem(type_) {
        return from_problem(problem);
    }
    if let Some(problem) = scene.problems().next() {
        return finding(
            type_,
            False,
            Reason::Pending,
            format!("no pod of {name} serves: {}", problem.message),
        );
    }
    let (reason, message) = scene.activity();
    finding(type_, False, reason, message)
}

fn refused(refusal: &super::super::apply::Refusal) -> String {
    format!("the API server refused pod {}: {}", refusal.pod, refusal.message)
}

fn ready(scene: &Scene<'_>, findings: &[Finding]) -> Finding {
    let type_ = ConditionType::Ready;
    let name = scene.name();
    let is_accepted = scene.outcome.rejected.is_none();
    if is_accepted && scene.is_suspended {
        return finding(
            type_,
            False,
            Reason::Suspended,
            format!("{name} is suspended; set spec.suspend to false to serve again"),
        );
    }
    if is_accepted && scene.wanted == 0 && scene.alive() == 0 {
        return finding(
            type_,
            True,
            Reason::ScaledToZero,
            format!("{name} has no pods, as its spec asks"),
        );
    }
    let is_whole = if scene.was_reached() && scene.goal == scene.target {
        scene.serving() > 0 && scene.others() == 0 && !scene.has_lost()
    } else {
        scene.is_reached()
    };
    if is_accepted && is_whole && scene.problem(ConditionType::ModelVerified).is_none() {
        return finding(
            type_,
            True,
            Reason::Serving,
            format!("{name} serves {}", scene.digest()),
        );
    }
    let in_order = || {
        READY_ORDER
            .iter()
            .filter_map(|wanted| findings.iter().find(|one| one.condition == *wanted))
    };
    let cause = in_order()
        .find(|one| one.status == False)
        .or_else(|| in_order().find(|one| one.status == Unknown))
        .or_else(|| findings.iter().find(|one| one.condition == ConditionType::Progressing));
    match cause {
        Some(cause) if cause.condition == ConditionType::ModelVerified && cause.status == False => finding(
            type_,
            False,
            Reason::VerifyFailed,
            format!("{}: {}", cause.reason.as_str(), cause.message),
        ),
        Some(cause) => finding(type_, False, cause.reason, cause.message.clone()),
        None => finding(type_, False, Reason::Pending, format!("{name} was not judged yet")),
    }
}

/// It serves, but something that was asked for is missing because of a problem. Growth alone is none.
fn degraded(scene: &Scene<'_>) -> Finding {
    let type_ = ConditionType::Degraded;
    let name = scene.name();
    if let Some(foreign) = scene.foreign.iter().find(|pod| pod.is_selected) {
        let message = format!(
            "pod {} carries the labels of {name} and is not one of its pods: the Service may send requests to it; delete it or take the label {} off",
            foreign.name,
            names::LABEL_DEPLOYMENT
        );
        return finding(type_, True, Reason::ForeignPod, message);
    }
    if let Some(alert) = scene.alerts().first() {
        return finding(type_, True, Reason::PolicyViolation, alert.clone());
    }
    if scene.available() == 0 {
        return finding(
            type_,
            False,
            Reason::Pending,
            format!("no pod of {name} serves, so nothing is missing from what serves"),
        );
    }
    if let Some(message) = given_up(scene) {
        return finding(type_, True, Reason::RolledBack, message);
    }
    if let Some(problem) = scene.problems().next() {
        return finding(type_, True, problem.reason, problem.message.clone());
    }
    if let Some(refusal) = scene.refused() {
        return finding(type_, True, Reason::PodRefused, refused(refusal));
    }
    finding(type_, False, Reason::Serving, format!("no pod of {name} has a problem"))
}

/// For `kstatus`: without a person it does not go on.
fn stalled(scene: &Scene<'_>, findings: &[Finding]) -> Finding {
    let type_ = ConditionType::Stalled;
    let is_ready = findings
        .iter()
        .any(|one| one.condition == ConditionType::Ready && one.status == True);
    if let Some(rejected) = &scene.outcome.rejected {
        return finding(type_, True, rejected.reason, rejected.message.clone());
    }
    if let Some(message) = given_up(scene) {
        return finding(type_, True, Reason::RolledBack, message);
    }
    let hopeless = scene.problems().find(|problem| needs_a_person(problem.reason));
    match hopeless {
        Some(problem) if !is_ready => finding(type_, True, problem.reason, problem.message.clone()),
        Some(_) | None => finding(type_, False, Reason::Complete, "nothing waits for a person".to_owned()),
    }
}

/// For `kstatus`: not settled yet.
fn reconciling(scene: &Scene<'_>, findings: &[Finding], is_stalled: bool) -> Finding {
    let type_ = ConditionType::Reconciling;
    let progressing = findings.iter().find(|one| one.condition == ConditionType::Progressing);
    match progressing {
        Some(progressing) if !scene.is_settled() && !is_stalled => {
            finding(type_, True, progressing.reason, progressing.message.clone())
        }
        Some(_) | None => finding(type_, False, Reason::Complete, "nothing is on its way".to_owned()),
    }
}
