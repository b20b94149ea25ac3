use std::time::Duration;

/// Over any span of this length the budget is kept.
const WINDOW: Duration = Duration::from_secs(60);
/// This part of a window's budget may be taken at once; what comes in meanwhile is less by it, so that both together are within
/// the budget.
const BURST: f64 = 0.05;

/// CPU time that comes in at a steady rate, and may be taken in small pieces.
#[derive(Debug)]
pub struct Budget {
    /// In CPU seconds for each second; none: without end.
    rate: Option<f64>,
    /// What is left, in seconds; below 0 after a piece of work that took more than was there.
    left: f64,
    /// When it was looked at last, and what had been taken by then.
    at: Duration,
    taken: Duration,
}

impl Budget {
    /// `share` of one CPU, from now on. `now` and `taken` are any clock's time, and the CPU time taken so far.
    #[must_use]
    pub fn new(share: Option<f64>, now: Duration, taken: Duration) -> Self {
        Budget {
            rate: share.map(|share| share * (1.0 - BURST)),
            left: 0.0,
            at: now,
            taken,
        }
    }

    /// How long to wait before the next piece of work. Work of one piece may take more than is left; the next one waits for it.
    pub fn wait(&mut self, now: Duration, taken: Duration) -> Duration {
        let Some(rate) = self.rate else {
            return Duration::ZERO;
        };
        let burst = rate / (1.0 - BURST) * BURST * WINDOW.as_secs_f64();
        let came = now.saturating_sub(self.at).as_secs_f64() * rate;
        let went = taken.saturating_sub(self.taken).as_secs_f64();
        self.left = (self.left + came).min(burst) - went;
        (self.at, self.taken) = (now, taken);
        match self.left > 0.0 {
            true => Duration::ZERO,
            // Not woken for each millisecond of work.
            false => Duration::from_secs_f64((burst / 4.0 - self.left) / rate),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever pieces it is taken in, and however long nothing was taken before.
        #[test]
        fn no_minute_takes_more(
            share in 0.005f64..1.0,
            pieces in prop::collection::vec((1u64..20_000, 0u64..30), 1..400),
        ) {
            let mut budget = Budget::new(Some(share), Duration::ZERO, Duration::ZERO);
            let (mut now, mut cpu) = (Duration::ZERO, Duration::ZERO);
            let mut log = Vec::new();
            for (micros, idle) in pieces {
                now += Duration::from_secs(idle);
                now += budget.wait(now, cpu);
                let piece = Duration::from_micros(micros);
                // On a machine that is used by others it takes longer; that only helps.
                (now, cpu) = (now + piece, cpu + piece);
                log.push((now, piece));
            }
            for (number, (start, _)) in log.iter().enumerate() {
                let within = log[number..].iter().take_while(|(at, _)| *at - *start <= WINDOW);
                let sum: Duration = within.map(|(_, piece)| *piece).sum();
                // One piece more, which nobody knows before it is done.
                let most = share * 60.0 + 0.02;
                prop_assert!(sum.as_secs_f64() <= most, "{sum:?} of {most} s");
            }
        }

        /// What is there is used, but for the part that pays for bursts.
        #[test]
        fn it_is_not_left_unused(share in 0.01f64..1.0) {
            let mut budget = Budget::new(Some(share), Duration::ZERO, Duration::ZERO);
            let (mut now, mut cpu) = (Duration::ZERO, Duration::ZERO);
            let piece = Duration::from_millis(1);
            while now < 10 * WINDOW {
                now += budget.wait(now, cpu);
                (now, cpu) = (now + piece, cpu + piece);
            }
            let used = cpu.as_secs_f64() / now.as_secs_f64() / share;
            prop_assert!(used > 0.9 && used <= 1.0, "{used}");
        }
    }

    #[test]
    fn without_a_budget_nothing_waits() {
        let mut budget = Budget::new(None, Duration::ZERO, Duration::ZERO);
        assert_eq!(budget.wait(Duration::ZERO, WINDOW), Duration::ZERO);
    }
}
