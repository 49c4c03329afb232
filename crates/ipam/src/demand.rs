//! How many addresses a node should hold for its pods and for pods to come.

/// Parameters for requesting addresses in batches ahead of demand, with hysteresis before some are released.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Watermarks {
    /// Addresses requested at once.
    pub batch: u32,
    /// Low watermark: the fewest free addresses, in percent of a batch.
    pub min_free_percent: u32,
    /// High watermark: the most free addresses before some are released, in percent of a batch.
    pub max_free_percent: u32,
    /// The most addresses that a node holds.
    pub max: u32,
}

impl Default for Watermarks {
    fn default() -> Self {
        Self { batch: 16, min_free_percent: 50, max_free_percent: 150, max: 250 }
    }
}

impl Watermarks {
    /// Whole batches, with at least the low watermark free beyond the demand. While the subnet is exhausted a batch is a
    /// single address, so that no node hoards.
    fn target(&self, demand: u32, exhausted: bool) -> u32 {
        let batch = u64::from(if exhausted { 1 } else { self.batch.max(1) });
        let percent = u64::from(self.min_free_percent);
        let batches = (percent * batch + 100 * u64::from(demand)).div_ceil(100 * batch);
        u32::try_from(batches * batch).unwrap_or(u32::MAX).min(self.max)
    }

    /// How many of `held` to release.
    fn surplus(&self, held: u32, demand: u32, exhausted: bool) -> u32 {
        let target = self.target(demand, exhausted);
        let free = u64::from(held.saturating_sub(demand));
        let tolerated = u64::from(self.batch.max(1)) * u64::from(self.max_free_percent) / 100;
        // Between the watermarks nothing changes, so that a pod that comes and goes moves no addresses.
        if free <= tolerated && !exhausted && held <= self.max { 0 } else { held.saturating_sub(target) }
    }
}

/// When a node requests more addresses, and when it releases some.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Growth {
    /// A fixed number, requested once.
    Fixed(u32),
    /// In batches, between watermarks.
    Batches(Watermarks),
    /// This many beyond the demand, rounded up to a multiple of it.
    Ahead(u32),
}

impl Growth {
    /// How many addresses the node should hold. `demand`: pods that have an address or wait for one.
    #[must_use]
    pub fn wanted(&self, demand: u32, exhausted: bool) -> u32 {
        match self {
            Self::Fixed(count) => *count,
            Self::Batches(marks) => marks.target(demand, exhausted),
            Self::Ahead(0) => demand,
            Self::Ahead(step) => demand.saturating_add(*step).div_ceil(*step).saturating_mul(*step),
        }
    }

    /// How many of the held addresses to release.
    #[must_use]
    pub fn surplus(&self, held: u32, demand: u32, exhausted: bool) -> u32 {
        match self {
            Self::Fixed(_) => 0,
            Self::Batches(marks) => marks.surplus(held, demand, exhausted),
            Self::Ahead(_) => held.saturating_sub(self.wanted(demand, exhausted)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_stay_ahead_of_demand_and_below_the_maximum() {
        let growth = Growth::Batches(Watermarks::default());
        let wanted: Vec<u32> = [0, 8, 9, 24, 25, 240, 250, 400].iter().map(|n| growth.wanted(*n, false)).collect();
        assert_eq!(wanted, [16, 16, 32, 32, 48, 250, 250, 250]);
        let scarce: Vec<u32> = [0, 8, 25, 250].iter().map(|n| growth.wanted(*n, true)).collect();
        assert_eq!(scarce, [1, 9, 26, 250]);
    }

    #[test]
    fn between_the_watermarks_nothing_changes() {
        let growth = Growth::Batches(Watermarks::default());
        // Held 32: with 8 in use 24 are free, which is tolerated; with 7 it is one too many, and a batch goes.
        assert_eq!([9, 8, 7, 0].map(|demand| growth.surplus(32, demand, false)), [0, 0, 16, 16]);
        assert_eq!(growth.surplus(300, 290, false), 50, "never more than the maximum");
        assert_eq!(growth.surplus(32, 8, true), 23, "an exhausted subnet gets back all but one");
    }

    #[test]
    fn what_is_preallocated_comes_in_multiples() {
        let growth = Growth::Ahead(8);
        assert_eq!([0, 1, 8, 9].map(|demand| growth.wanted(demand, false)), [8, 16, 16, 24]);
        assert_eq!(growth.surplus(64, 1, false), 48);
        assert_eq!((Growth::Ahead(0).wanted(3, false), Growth::Fixed(30).surplus(40, 0, false)), (3, 0));
    }
}
