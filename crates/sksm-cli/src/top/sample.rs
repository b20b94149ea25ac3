//! One look at the system and its processes, and a thread that looks again and again.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Serialize;
use sksm::Error;

use crate::domain::{Mode, Names, Owner};
use crate::footprint::Footprint;
use crate::scan;
use crate::store;
use crate::system::{Counters, System};
use crate::target::{self, Targets};
use crate::{exit, support, unit};

#[derive(Serialize, Clone)]
pub struct Sample {
    /// When it was taken.
    #[serde(skip)]
    pub at: Instant,
    #[serde(flatten)]
    pub system: System,
    /// What runs `sksm scan`, or did.
    pub scanner: scan::seen::Seen,
    pub store: store::Seen,
    /// Pages that merging has freed, zero pages left out.
    pub saved: Saved,
    /// What is not there, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<&'static str>,
    /// What makes a merge domain.
    pub domain: Option<&'static str>,
    pub domains: Vec<Domain>,
    pub processes: Vec<Process>,
    /// Processes that may not be looked at.
    pub denied: usize,
}

#[derive(Serialize, Clone, Copy, Default)]
pub struct Saved {
    pub sksm_bytes: i64,
    pub ksm_bytes: i64,
    /// By SKSM and KSM: the kernel counts them together.
    pub zero_bytes: i64,
    /// Zero pages included, less metadata; none where the kernel does not tell.
    pub sksm_net_bytes: Option<i64>,
    pub ksm_net_bytes: Option<i64>,
}

/// Processes whose pages may merge with each other.
#[derive(Serialize, Clone, Default)]
pub struct Domain {
    pub name: String,
    pub processes: usize,
    pub anonymous_bytes: u64,
    pub merged_bytes: u64,
}

#[derive(Serialize, Clone)]
pub struct Process {
    #[serde(flatten)]
    pub footprint: Footprint,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Of systemd, or else its control group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Why it is in none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apart: Option<String>,
}

impl Sample {
    /// Fails where there can be nothing to see: on kernels that merge nothing, without a store.
    pub fn take(targets: &Targets) -> Result<Self> {
        let system = System::read();
        let store = store::Seen::now();
        if system.sksm.is_none() && system.ksm.is_none() && store.account.is_none() {
            let reason = store.hidden.map(|why| exit::with(exit::FAILED, &why));
            return Err(reason.unwrap_or_else(support::uncounted));
        }
        let mode = Mode::read();
        let names = Names::new();
        let mut processes = Vec::new();
        let mut denied = 0;
        let pids = match targets.nobody() {
            true => target::all()?,
            // Nobody, at this look.
            false => targets.choose().map_or(Vec::new(), |chosen| chosen.pids),
        };
        for pid in pids {
            let owner = mode.map(|mode| Ok((mode, Owner::of(pid)?))).transpose();
            match (Footprint::of(pid), owner) {
                (Ok(footprint), Ok(owner)) => {
                    let domain = owner.map(|(mode, owner)| owner.domain(mode));
                    let (domain, apart) = match domain {
                        None => (None, None),
                        Some(Ok(domain)) => (Some(names.of(&domain)), None),
                        Some(Err(apart)) => (None, Some(apart.to_string())),
                    };
                    processes.push(Process {
                        unit: unit::of(footprint.pid),
                        footprint,
                        domain,
                        apart,
                    });
                }
                // It has exited.
                (Err(Error::Gone { .. }), _) => {}
                (Err(_), _) => denied += 1,
                (Ok(_), Err::<_, io::Error>(error)) => {
                    denied += usize::from(error.kind() == io::ErrorKind::PermissionDenied);
                }
            }
        }
        Ok(Sample {
            at: Instant::now(),
            saved: Saved::of(&system),
            missing: (system.sksm.is_none()).then(|| support::why_no_sksm(system.ksm.is_some())),
            domain: mode.map(Mode::name),
            domains: domains(&processes),
            system,
            scanner: scan::seen::Seen::now(),
            store,
            processes,
            denied,
        })
    }
}

impl Saved {
    fn of(system: &System) -> Self {
        let page = sksm::page_size() as i64;
        let counter = |counters: &Option<Counters>, name| {
            let counters = counters.as_ref();
            counters.and_then(|counters| counters.get(name).copied())
        };
        let (sksm, ksm) = (&system.sksm, &system.ksm);
        let zero = counter(sksm, "pages_zero").or(counter(ksm, "ksm_zero_pages"));
        Saved {
            sksm_bytes: counter(sksm, "pages_sharing").unwrap_or(0) * page,
            ksm_bytes: counter(ksm, "pages_sharing").unwrap_or(0) * page,
            zero_bytes: zero.unwrap_or(0) * page,
            sksm_net_bytes: counter(sksm, "general_profit"),
            ksm_net_bytes: counter(ksm, "general_profit"),
        }
    }
}

/// Those with the most merged memory first.
fn domains(processes: &[Process]) -> Vec<Domain> {
    let mut domains: BTreeMap<&str, Domain> = BTreeMap::new();
    for process in processes {
        let Some(name) = &process.domain else {
            continue;
        };
        let domain = domains.entry(name).or_default();
        domain.processes += 1;
        domain.anonymous_bytes += process.footprint.anonymous_bytes;
        domain.merged_bytes += process.footprint.merged_bytes;
    }
    let mut domains: Vec<Domain> = (domains.into_iter())
        .map(|(name, domain)| Domain {
            name: name.into(),
            ..domain
        })
        .collect();
    domains.sort_by_key(|domain| std::cmp::Reverse(domain.merged_bytes));
    domains
}

/// Looks at a thread of its own: a look takes as long as all page tables of the system.
pub struct Sampler {
    samples: Receiver<Result<Sample>>,
    interval: Sender<Duration>,
}

impl Sampler {
    pub fn start(every: Duration, targets: Targets) -> Self {
        Self::with(every, move || Sample::take(&targets))
    }

    fn with(mut every: Duration, take: impl Fn() -> Result<Sample> + Send + 'static) -> Self {
        let (send, samples) = channel();
        let (interval, changes) = channel();
        std::thread::spawn(move || {
            let mut cost = Duration::ZERO;
            loop {
                let from = Instant::now();
                // At most a fifth of one processor's time.
                loop {
                    let wait = every.max(cost * 4).saturating_sub(from.elapsed());
                    match changes.recv_timeout(wait) {
                        Ok(change) => every = change,
                        Err(RecvTimeoutError::Timeout) => break,
                        Err(RecvTimeoutError::Disconnected) => return,
                    }
                }
                let start = Instant::now();
                if send.send(take()).is_err() {
                    return;
                }
                cost = start.elapsed();
            }
        });
        Sampler { samples, interval }
    }

    /// Looks so often from now on.
    pub fn every(&self, interval: Duration) {
        // Where the thread has ended, `next` says so.
        self.interval.send(interval).ok();
    }

    /// A look that has not been seen yet, if there is one.
    pub fn next(&self) -> Result<Option<Sample>> {
        match self.samples.try_recv() {
            Ok(sample) => sample.map(Some),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => bail!("the thread that looks has ended"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_add_up() {
        let process = |pid, domain: &str, merged_bytes| Process {
            footprint: Footprint {
                pid,
                name: "x".into(),
                rss_bytes: 30,
                anonymous_bytes: 20,
                merged_bytes,
                ..Footprint::default()
            },
            domain: Some(domain.into()),
            unit: None,
            apart: None,
        };
        let all = [
            process(1, "root", 1),
            process(2, "www", 4),
            process(3, "www", 5),
        ];
        let domains = domains(&all);
        let seen: Vec<_> = (domains.iter())
            .map(|domain| (domain.name.as_str(), domain.processes, domain.merged_bytes))
            .collect();
        assert_eq!(seen, [("www", 2, 9), ("root", 1, 1)]);
    }

    #[test]
    fn this_process_is_seen() {
        let system = System::read();
        let nothing = system.sksm.is_none() && system.ksm.is_none();
        let sample = match Sample::take(&Targets::default()) {
            Ok(sample) => sample,
            // Unless this user has a store.
            Err(error) => return assert!(nothing, "{error:#}"),
        };
        let own = std::process::id();
        let own = (sample.processes.iter()).find(|process| process.footprint.pid == own);
        assert!(own.unwrap().footprint.rss_bytes > 0);
        assert_eq!(sample.missing.is_some(), sample.system.sksm.is_none());
        assert_eq!(sample.domains.is_empty(), sample.domain.is_none());
    }

    #[test]
    fn the_thread_looks_as_often_as_it_is_told() {
        use crate::top::state::tests::sample;
        // Not of the kernel, which may have nothing that merges.
        let take = || Ok(sample(0, Instant::now()));
        let sampler = Sampler::with(Duration::from_secs(3600), take);
        sampler.every(Duration::from_millis(1));
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut seen = 0;
        while seen < 2 {
            assert!(Instant::now() < deadline, "{seen} looks");
            seen += usize::from(sampler.next().unwrap().is_some());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
