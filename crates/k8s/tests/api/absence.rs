//! Kinds that the server does not give: forbidden, not served, not served yet, not served any more; and connections that
//! die in silence. What was listed stays in force until the server says otherwise.

use crate::fake::Fake;
use crate::watching::Reader;
use serde_json::json;
use std::time::Duration;
use weft_k8s::watch::Timing;
use weft_model::intent::{Change, PolicyKind, Source, SourceProblem};

const CNP: &str = "apis/cilium.io/v2/ciliumnetworkpolicies";
const GROUPS: &str = "apis/cilium.io/v2/ciliumcidrgroups";
const REDIRECTS: &str = "apis/cilium.io/v2/ciliumlocalredirectpolicies";
const POLICIES: &str = "apis/networking.k8s.io/v1/networkpolicies";
const CNP_SOURCE: Source = Source::Policies(PolicyKind::CiliumNetworkPolicy);

/// Everything that takes minutes in a cluster.
const TIMING: Timing = Timing {
    watch: Duration::from_secs(3),
    silence: Duration::from_millis(200),
    retry_max: Duration::from_millis(10),
    not_served_retry_max: Duration::from_millis(10),
    not_served_confirm: Duration::from_millis(200),
    failing_report: Duration::from_millis(100),
};

fn put_policy(fake: &Fake) {
    let spec = json!({"endpointSelector": {}, "ingress": [{}]});
    fake.put(CNP, json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec}));
}

fn has_problem(source: Source, text: &'static str) -> impl Fn(&Change) -> bool {
    move |change| matches!(change, Change::SourceProblem(from, Some(problem)) if *from == source && problem.text.contains(text))
}

fn solved(source: Source) -> impl Fn(&Change) -> bool {
    move |change| *change == Change::SourceProblem(source, None)
}

fn policy_gone(change: &Change) -> bool {
    matches!(change, Change::PolicyGone(_))
}

/// Reads until the server was asked so often that [`TIMING`]'s times are over several times.
async fn attempts(fake: &Fake, reader: &mut Reader) {
    let before = fake.lists();
    let asked = fake.until("asked again and again", |fake| fake.lists() >= before + 120);
    tokio::pin!(asked);
    loop {
        tokio::select! {
            batch = reader.changes.recv() => reader.seen.extend(batch.expect("the watches go on")),
            () = &mut asked => break,
        }
    }
    // Whatever comes of an attempt is sent before the next one.
    while let Ok(batch) = reader.changes.try_recv() {
        reader.seen.extend(batch);
    }
}

#[tokio::test]
async fn a_404_that_discovery_does_not_confirm_never_takes_a_policy_away() {
    for (starting, discovered) in [(true, false), (false, true)] {
        let fake = Fake::new();
        put_policy(&fake);
        let mut reader = Reader::start_with(&fake, TIMING);
        reader.synced().await;
        reader.seen.clear();
        fake.set_starting(starting);
        fake.set_discovered(CNP, discovered);
        fake.set_known(CNP, false);
        fake.compact(|_| {});
        attempts(&fake, &mut reader).await;
        assert!(!reader.seen.iter().any(policy_gone), "{:#?}", reader.seen);
        reader.until("the problem", has_problem(CNP_SOURCE, "cannot list ciliumnetworkpolicies.cilium.io: 404")).await;
        // It goes on as if nothing had been.
        fake.set_known(CNP, true);
        reader.until("solved", solved(CNP_SOURCE)).await;
        assert!(!reader.seen.iter().any(|change| policy_gone(change) || matches!(change, Change::Policy(_))));
    }
}

#[tokio::test]
async fn a_404_of_a_server_that_starts_is_no_empty_list() {
    let fake = Fake::new();
    put_policy(&fake);
    fake.set_starting(true);
    fake.set_known(CNP, false);
    let mut reader = Reader::start_with(&fake, TIMING);
    attempts(&fake, &mut reader).await;
    assert!(!reader.seen.contains(&Change::Synced(CNP_SOURCE)), "half the policies are another policy");
    assert!(reader.seen.iter().any(has_problem(CNP_SOURCE, "discovery does not confirm it")), "{:#?}", reader.seen);
    fake.set_starting(false);
    fake.set_known(CNP, true);
    reader.synced().await;
    assert!(reader.seen.iter().any(|change| matches!(change, Change::Policy(_))));
}

#[tokio::test]
async fn a_kind_that_is_positively_gone_ends_after_a_while_and_says_so() {
    let fake = Fake::new();
    put_policy(&fake);
    let mut reader = Reader::start_with(&fake, TIMING);
    reader.synced().await;
    reader.seen.clear();
    fake.set_known(CNP, false);
    fake.compact(|_| {});
    let went = std::time::Instant::now();
    reader.until("still in force", has_problem(CNP_SOURCE, "stay in force for now")).await;
    assert!(!reader.seen.iter().any(policy_gone));
    reader.until("gone", policy_gone).await;
    assert!(went.elapsed() >= TIMING.not_served_confirm, "{:?}", went.elapsed());
    // The problem stays for as long as the kind is away.
    reader.seen.retain(|change| !has_problem(CNP_SOURCE, "stay in force for now")(change));
    attempts(&fake, &mut reader).await;
    assert!(
        reader.seen.iter().any(has_problem(CNP_SOURCE, "its 1 objects are no longer in force")),
        "{:#?}",
        reader.seen
    );
    assert!(!reader.seen.iter().any(solved(CNP_SOURCE)));
    fake.set_known(CNP, true);
    reader.until("back", |change| matches!(change, Change::Policy(_))).await;
    reader.until("solved", solved(CNP_SOURCE)).await;
}

#[tokio::test]
async fn a_forbidden_policy_kind_is_unknown_and_names_the_rule_to_add() {
    for (collection, source, rule) in [
        (CNP, CNP_SOURCE, r#"resources [ciliumnetworkpolicies] of apiGroups ["cilium.io"]"#),
        (
            POLICIES,
            Source::Policies(PolicyKind::NetworkPolicy),
            r#"resources [networkpolicies] of apiGroups ["networking.k8s.io"]"#,
        ),
        ("api/v1/pods", Source::Pods, r#"resources [pods] of apiGroups [""]"#),
    ] {
        let fake = Fake::new();
        fake.set_forbidden(collection, true);
        let mut reader = Reader::start_with(&fake, TIMING);
        attempts(&fake, &mut reader).await;
        assert!(!reader.seen.contains(&Change::Synced(source)), "{collection}");
        let problems: Vec<&SourceProblem> = reader
            .seen
            .iter()
            .filter_map(|c| if let Change::SourceProblem(_, problem) = c { problem.as_ref() } else { None })
            .collect();
        assert_eq!(problems.len(), 1, "told once: {problems:#?}");
        assert!(problems[0].text.contains(rule) && problems[0].text.contains("verbs [list, watch]"), "{problems:#?}");
        assert!(!problems[0].listed);
        fake.set_forbidden(collection, false);
        reader.synced().await;
        reader.until("solved", solved(source)).await;
    }
}

#[tokio::test]
async fn a_forbidden_feature_keeps_nobody_waiting_but_stays_a_problem() {
    let fake = Fake::new();
    fake.set_forbidden(GROUPS, true);
    fake.set_forbidden(REDIRECTS, true);
    fake.put(GROUPS, json!({"metadata": {"name": "g"}, "spec": {"externalCIDRs": ["10.0.0.0/8"]}}));
    let mut reader = Reader::start_with(&fake, TIMING);
    reader.synced().await;
    for source in [Source::CidrGroups, Source::LocalRedirects] {
        let known = |change: &Change| matches!(change, Change::SourceProblem(from, Some(problem)) if *from == source && !problem.listed);
        reader.until("the problem", known).await;
        assert!(!reader.seen.iter().any(solved(source)));
        let position = |told: &dyn Fn(&Change) -> bool| reader.seen.iter().position(told);
        assert!(position(&known) < position(&|change| *change == Change::Synced(source)), "the problem comes first");
    }
    fake.set_forbidden(GROUPS, false);
    reader.until("the group", |change| matches!(change, Change::CidrGroup(group) if group.name == "g")).await;
    reader.until("solved", solved(Source::CidrGroups)).await;
    // Forbidden again: what was listed stays.
    reader.seen.clear();
    fake.set_forbidden(GROUPS, true);
    fake.compact(|_| {});
    attempts(&fake, &mut reader).await;
    assert!(!reader.seen.iter().any(|change| matches!(change, Change::CidrGroupGone(_))), "{:#?}", reader.seen);
    let listed =
        |change: &Change| matches!(change, Change::SourceProblem(Source::CidrGroups, Some(problem)) if problem.listed);
    assert!(reader.seen.iter().any(listed), "{:#?}", reader.seen);
}

#[tokio::test]
async fn a_policy_stays_while_its_kind_is_forbidden() {
    let fake = Fake::new();
    put_policy(&fake);
    let mut reader = Reader::start_with(&fake, TIMING);
    reader.synced().await;
    reader.seen.clear();
    fake.set_forbidden(CNP, true);
    fake.hang_up();
    reader.until("the watch is forbidden", has_problem(CNP_SOURCE, "cannot watch")).await;
    fake.compact(|_| {});
    attempts(&fake, &mut reader).await;
    assert!(!reader.seen.iter().any(policy_gone), "{:#?}", reader.seen);
    fake.set_forbidden(CNP, false);
    reader.until("solved", solved(CNP_SOURCE)).await;
    assert!(!reader.seen.iter().any(policy_gone));
}

#[tokio::test]
async fn a_kind_that_was_never_served_is_no_problem() {
    let fake = Fake::new();
    fake.set_known(CNP, false);
    let mut reader = Reader::start_with(&fake, TIMING);
    reader.synced().await;
    attempts(&fake, &mut reader).await;
    assert!(!reader.seen.iter().any(|change| matches!(change, Change::SourceProblem(..))), "{:#?}", reader.seen);
}

#[tokio::test]
async fn requests_that_fail_for_long_become_a_problem_and_go_on_by_themselves() {
    let fake = Fake::new();
    let mut reader = Reader::start_with(&fake, TIMING);
    reader.synced().await;
    reader.seen.clear();
    fake.refuse(&[503; 300]);
    fake.hang_up();
    reader.until("a problem", has_problem(Source::Namespaces, "cannot watch namespaces")).await;
    reader.until("solved", solved(Source::Namespaces)).await;
    reader.barrier(&fake, 0).await;
}

#[tokio::test]
async fn a_connection_that_is_dead_without_a_word_is_noticed() {
    let fake = Fake::new();
    let mut reader = Reader::start_with(&fake, TIMING);
    reader.synced().await;
    reader.seen.clear();
    // Watches may be silent for as long as they last; then they must end, by the server or by us.
    fake.freeze();
    let began = std::time::Instant::now();
    fake.put("api/v1/namespaces", json!({"metadata": {"name": "late"}}));
    let read = async {
        while !reader.seen.iter().any(|change| matches!(change, Change::Namespace(ns) if ns.name == "late")) {
            reader.seen.extend(reader.changes.recv().await.expect("the watches go on"));
        }
    };
    tokio::time::timeout(Duration::from_secs(20), read).await.expect("noticed");
    assert!(began.elapsed() >= TIMING.watch, "{:?}", began.elapsed());
}
