//! How objects are read, and why one cannot be used.

use weft_model::intent::Covers;

/// How policies are read, where that is a matter of configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// Which addresses of the cluster the prefixes of cilium.io policies match. Those of NetworkPolicy and
    /// ClusterNetworkPolicy match all.
    pub cidr_covers: Covers,
    /// Whether cilium.io policies may name protocols without ports, such as VRRP.
    pub extended_protocols: bool,
    pub host_firewall: bool,
}

/// Why an object cannot be used: `spec.egress[0].ports[1].port: ...`.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Problem {
    pub field: String,
    /// What is wrong with it, and what was expected.
    pub problem: String,
}

impl Problem {
    /// At `field`.
    pub(crate) fn new(field: impl std::fmt::Display, problem: impl Into<String>) -> Self {
        Self { field: field.to_string(), problem: problem.into() }
    }
}

/// All that is wrong with an object: one problem at least.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problems {
    first: Problem,
    others: Vec<Problem>,
}

impl Problems {
    /// `None` if there are none.
    pub(super) fn new(problems: Vec<Problem>) -> Option<Self> {
        let mut problems = problems.into_iter();
        problems.next().map(|first| Self { first, others: problems.collect() })
    }

    pub(super) fn and(mut self, those: Self) -> Self {
        self.others.extend(those);
        self
    }

    #[must_use]
    pub fn first(&self) -> &Problem {
        &self.first
    }
}

impl Settings {
    /// All that may be written in policies, wherever it is switched on.
    pub const EVERYTHING: Self = Self { cidr_covers: Covers::WORLD, extended_protocols: true, host_firewall: true };
}

impl std::error::Error for Problems {}

impl std::fmt::Display for Problems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.first)?;
        match self.others.len() {
            0 => Ok(()),
            1 => f.write_str(" (and one more problem)"),
            others => write!(f, " (and {others} more problems)"),
        }
    }
}

impl From<Problem> for Problems {
    fn from(first: Problem) -> Self {
        Self { first, others: Vec::new() }
    }
}

impl IntoIterator for Problems {
    type Item = Problem;
    type IntoIter = std::iter::Chain<std::iter::Once<Problem>, std::vec::IntoIter<Problem>>;

    fn into_iter(self) -> Self::IntoIter {
        std::iter::once(self.first).chain(self.others)
    }
}
