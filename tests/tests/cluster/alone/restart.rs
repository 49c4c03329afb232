//! Killing the agent loses nothing: not a packet that is allowed, not the denial of one that is not, not the next pod.

use anyhow::{Context as _, Result, ensure};
use std::time::{Duration, Instant};
use weft_oracle::effort::effort;
use weft_tests::cluster::{Cluster, PORT, Stream};

/// How often the agent is killed under streams: in the gate, and in a run of full size.
const KILLS: [usize; 2] = [8, 20];
/// Seconds of a stream.
const STREAM_S: [u64; 2] = [15, 30];

#[test]
fn a_killed_agent_loses_no_packet_and_lets_none_through() -> Result<()> {
    let cluster = Cluster::up("rs", &["--nodes", "2"])?;
    let server = cluster.pod("server", "node-1", "role: server")?;
    let near = cluster.pod("near", "node-1", "role: client")?;
    let far = cluster.pod("far", "node-2", "role: client")?;
    let stranger = cluster.pod("stranger", "node-2", "role: stranger")?;
    cluster.policy(
        "clients",
        "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress], \
         ingress: [{from: [{podSelector: {matchLabels: {role: client}}}]}]}",
    )?;
    let (most, stream_s) = (effort(KILLS[0], KILLS[1]), effort(STREAM_S[0], STREAM_S[1]));
    let mut kills = 0;
    // Streams of a bounded length, one round per family in turn, until the agent was killed often enough.
    for round in 0.. {
        if kills == most {
            ensure!(round > 1, "all {kills} kills were in one round: one family was not tried");
            break;
        }
        ensure!(round < 2 * most, "only {kills} kills in {round} rounds");
        let to = server.addresses[round % 2];
        let began = Instant::now();
        let allowed = format!("--udp --rate 5000 --duration {stream_s}");
        let streams = [("far", cluster.stream(&far, &allowed, to)?), ("near", cluster.stream(&near, &allowed, to)?)];
        let denied = cluster.stream(&stranger, &format!("--udp --rate 500 --duration {stream_s}"), to)?;
        // Of the kills each family has its part.
        while kills < (most * (round + 1)).div_ceil(2).min(most)
            && began.elapsed() < Duration::from_secs(stream_s * 2 / 3)
        {
            let old = cluster.kill("agent-node-1")?;
            cluster.agent_again("node-1", old).with_context(|| format!("after kill {kills}"))?;
            let name = format!("new-{kills}");
            let new = cluster.pod(&name, "node-1", "role: client")?;
            cluster.reaches(&new, "--tcp", &server, PORT).with_context(|| format!("after kill {kills}"))?;
            cluster.kubectl(&["delete", "pod", &name, "--wait=false"])?;
            kills += 1;
        }
        for (name, stream) in streams {
            whole(name, stream, stream_s)?;
        }
        let report = denied.finish()?;
        ensure!(report["received"] == 0 && report["sent"].as_u64() > Some(0), "denied packets came through: {report}");
    }
    cluster.down()
}

fn whole(name: &str, stream: Stream, stream_s: u64) -> Result<()> {
    let report = stream.finish()?;
    ensure!(report["lost"] == 0 && report["error"].is_null(), "stream of {name}: {report}");
    ensure!(report["sent"] == 5000 * stream_s, "stream of {name}: {report}");
    Ok(())
}
