//! Other processes, as the scanner sees them: by /proc, `process_vm_readv(2)` and `process_madvise(2)`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sksm::{Error, Kinds, MergeStatistics, Process, Region, merge_remote_each};
use sksm_scan::{Content, Found, Gone, Known, Merged, Seen, Whole, World};
use twox_hash::XxHash3_128;

use super::serve;
use crate::descriptors;
use crate::domain::{Domain, Mode, Owner};
use crate::estimate::memory::Place;
use crate::estimate::pagemap::{self, Entry};
use crate::estimate::subject::{Files, Program};
use crate::estimate::{cpu_time, huge_page, nodes, sample};
use crate::hung;
use crate::reason::{self, NOT_DUMPABLE};
use crate::target::name_of;

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wanted {
    pub kinds: Kinds,
    /// Only mappings that KSM would scan.
    pub opted_in: bool,
}

/// Who could be looked at, chosen anew each time.
type Choose = Box<dyn FnMut() -> Vec<u32>>;

pub struct Remote {
    choose: Choose,
    wanted: Wanted,
    started: Instant,
    next_id: u64,
    ids: HashMap<u32, u64>,
    watched: BTreeMap<u64, Watched>,
    domains: BTreeMap<Domain, u64>,
    next_domain: u64,
    left_out: BTreeMap<u32, LeftOut>,
    zero_key: u32,
    hash_of_zeros: u128,
    /// Room for pages that are read in full.
    room: Vec<u8>,
    /// Descriptors that may be kept open.
    descriptors: usize,
    /// Of the process that was looked at last, where they may not.
    last_files: Option<(u64, Arc<Files>)>,
}

/// A process that is looked at.
pub struct Watched {
    pub pid: u32,
    pub name: String,
    program: Program,
    domain: Option<u64>,
    /// Those of files and those with merged pages in them, by numbers of pages.
    of_file: Vec<Range<u64>>,
    with_merged: Vec<Range<u64>>,
    files: Option<Arc<Files>>,
    /// Whether it has any memory that is wanted.
    pub has_pages: bool,
    /// Memory in huge pages, in bytes: of what is looked at, when its layout was asked for last.
    pub huge_bytes: u64,
}

impl Watched {
    /// Whether the process runs the same program still. To be asked after its files, or a pidfd, were opened: they are those of this
    /// program then, or tell that it has gone.
    fn runs_still(&self) -> bool {
        Program::of(self.pid).is_ok_and(|now| now == self.program)
    }
}

/// A process that is not looked at.
struct LeftOut {
    program: Option<Program>,
    reason: String,
    /// It is asked again then: a right may have come.
    again: Instant,
}

impl LeftOut {
    fn new(pid: u32, reason: String) -> Self {
        LeftOut {
            program: Program::of(pid).ok(),
            reason,
            again: Instant::now() + BELIEVED,
        }
    }
}

const HUNG: &str = "it, or two others of its user or container, made the scanner wait for ever: see --patience of `sksm scan`";

/// A refusal is believed for so long.
const BELIEVED: Duration = Duration::from_secs(300);
/// So many pages are sampled by one call.
const SAMPLES: usize = 256;
/// And so many read in full: they stay in a processor's cache until they are hashed.
const READS: usize = 64;
/// In a mapping of which less than this part is there, what is there is asked for page by page.
const SPARSE: u64 = 8;
/// Files that are not those of processes.
const OWN_FILES: usize = 64;
/// Pages with fewer missing between them are one range.
const NEAR: u64 = 64;

impl Remote {
    pub fn new(choose: Choose, wanted: Wanted) -> Self {
        Remote {
            choose,
            wanted,
            started: Instant::now(),
            next_id: 1,
            ids: HashMap::new(),
            watched: BTreeMap::new(),
            domains: BTreeMap::new(),
            next_domain: 0,
            left_out: BTreeMap::new(),
            zero_key: sample::key_of_zeros() as u32,
            hash_of_zeros: XxHash3_128::oneshot(&vec![0; sksm::page_size()]),
            room: vec![0; READS * sksm::page_size()],
            descriptors: descriptors::besides(OWN_FILES),
            last_files: None,
        }
    }

    /// Others from now on; who is among both is known still.
    pub fn set(&mut self, choose: Choose, wanted: Wanted) {
        self.choose = choose;
        self.wanted = wanted;
        self.left_out.clear();
    }

    pub fn watched(&self, id: u64) -> Option<&Watched> {
        self.watched.get(&id)
    }

    pub fn looks_at(&self, pid: u32) -> bool {
        self.ids.contains_key(&pid)
    }

    /// Who is not looked at, and why.
    pub fn left_out(&self) -> impl Iterator<Item = (u32, &str)> {
        let all = self.left_out.iter();
        all.map(|(pid, left)| (*pid, &*left.reason))
    }

    /// Takes it up, if it can be looked at.
    fn take(&mut self, pid: u32) -> Result<u64, String> {
        if hung::is_known(pid) {
            return Err(HUNG.into());
        }
        let program = Program::of(pid).map_err(|_| reason::GONE.to_owned())?;
        hung::meet(pid);
        hung::reads(pid);
        if let Err(error) = Files::open(pid) {
            hung::forget(pid);
            return Err(reason::of(pid, &error));
        }
        let id = self.next_id;
        self.next_id += 1;
        self.ids.insert(pid, id);
        let watched = Watched {
            pid,
            name: name_of(pid),
            program,
            domain: None,
            of_file: Vec::new(),
            with_merged: Vec::new(),
            files: None,
            has_pages: false,
            huge_bytes: 0,
        };
        self.watched.insert(id, watched);
        Ok(id)
    }

    /// The number of the domain that it is in now, or why it is in none.
    fn domain_of(&mut self, pid: u32, mode: Mode) -> Result<u64, String> {
        let owner = Owner::of(pid).map_err(|_| reason::GONE.to_owned())?;
        let domain = owner
            .domain(mode)
            .map_err(|apart| format!("nothing of it merges, as {apart}; {}", apart.remedy()))?;
        if owner.left_alone(pid) {
            return Err(format!("it is {NOT_DUMPABLE}"));
        }
        let next = &mut self.next_domain;
        Ok(*self.domains.entry(domain).or_insert_with(|| {
            *next += 1;
            *next
        }))
    }

    /// The process of this number, if the same program runs in it still.
    fn same(&mut self, pid: u32) -> Option<u64> {
        let id = *self.ids.get(&pid)?;
        let same = self.watched[&id].runs_still();
        if !same {
            self.forget(id);
        }
        same.then_some(id)
    }

    fn forget(&mut self, id: u64) {
        self.last_files.take_if(|(last, _)| *last == id);
        if let Some(gone) = self.watched.remove(&id) {
            self.ids.remove(&gone.pid);
            hung::forget(gone.pid);
            self.descriptors += if gone.files.is_some() { 2 } else { 0 };
        }
    }

    fn files(&mut self, id: u64) -> Result<Arc<Files>, Gone> {
        let watched = self.watched.get_mut(&id).ok_or(Gone)?;
        hung::reads(watched.pid);
        if let Some(files) = &watched.files {
            return Ok(files.clone());
        }
        if let Some((_, files)) = self.last_files.as_ref().filter(|(last, _)| *last == id) {
            return Ok(files.clone());
        }
        let files = Arc::new(Files::open(watched.pid).map_err(|_| Gone)?);
        if !watched.runs_still() {
            return Err(Gone);
        }
        if self.descriptors >= 2 {
            self.descriptors -= 2;
            watched.files = Some(files.clone());
        } else {
            self.last_files = Some((id, files.clone()));
        }
        Ok(files)
    }

    fn refuse(&mut self, id: u64, error: &Error) {
        let Some(watched) = self.watched.get(&id) else {
            return;
        };
        let pid = watched.pid;
        let left = LeftOut::new(pid, reason::of(pid, error));
        self.forget(id);
        self.left_out.insert(pid, left);
    }
}

fn covers(ranges: &[Range<u64>], page: u64) -> bool {
    let at = ranges.partition_point(|range| range.end <= page);
    ranges.get(at).is_some_and(|range| range.start <= page)
}

impl World for Remote {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn cpu(&self) -> Duration {
        // What others make the socket take is none of the scanner's budget.
        Duration::from_secs_f64(cpu_time()).saturating_sub(serve::cpu_time())
    }

    fn processes(&mut self, see: &mut dyn FnMut(Found)) {
        let mode = Mode::read().unwrap_or(Mode::Cgroup);
        let pids: BTreeSet<u32> = (self.choose)().into_iter().collect();
        let gone: Vec<u64> = (self.watched.iter())
            .filter(|(_, watched)| !pids.contains(&watched.pid))
            .map(|(id, _)| *id)
            .collect();
        gone.into_iter().for_each(|id| self.forget(id));
        self.left_out.retain(|pid, _| pids.contains(pid));
        let now = Instant::now();
        for pid in pids {
            let believed = self
                .left_out
                .get(&pid)
                .is_some_and(|left| left.again > now && Program::of(pid).ok() == left.program);
            if believed {
                continue;
            }
            let found = self.domain_of(pid, mode).and_then(|domain| {
                let known = self.same(pid);
                Ok((known.map_or_else(|| self.take(pid), Ok)?, domain))
            });
            match found {
                Ok((id, domain)) => {
                    self.left_out.remove(&pid);
                    if let Some(watched) = self.watched.get_mut(&id) {
                        watched.domain = Some(domain);
                    }
                    see(Found::new(id, domain));
                }
                Err(reason) => {
                    if let Some(id) = self.ids.get(&pid).copied() {
                        self.forget(id);
                    }
                    let left = LeftOut::new(pid, reason);
                    // Who has gone is nobody that was left out.
                    if left.program.is_some() {
                        self.left_out.insert(pid, left);
                    }
                }
            }
        }
        // Control groups come and go.
        let used: BTreeSet<u64> = (self.watched.values())
            .filter_map(|watched| watched.domain)
            .collect();
        self.domains.retain(|_, number| used.contains(number));
    }

    fn layout(&mut self, id: u64, see: &mut dyn FnMut(sksm_scan::Range)) -> Result<(), Gone> {
        let files = self.files(id)?;
        let wanted = self.wanted;
        let watched = self.watched.get_mut(&id).ok_or(Gone)?;
        let mappings = Process::open(watched.pid).and_then(|process| process.mappings());
        let mappings = mappings.map_err(|_| Gone)?;
        if !watched.runs_still() || mappings.is_empty() {
            return Err(Gone);
        }
        let page = sksm::page_size() as u64;
        let numbers = |region: Region| region.start as u64 / page..region.end() as u64 / page;
        (watched.of_file, watched.with_merged) = (Vec::new(), Vec::new());
        (watched.has_pages, watched.huge_bytes) = (false, 0);
        for mapping in mappings {
            let fits = wanted.kinds.has(mapping.kind)
                && mapping.mergeable
                && !mapping.passed_over
                && (mapping.opted_in || !wanted.opted_in)
                && mapping.statistics.anonymous > 0;
            if !fits {
                continue;
            }
            let range = numbers(mapping.region);
            let statistics = &mapping.statistics;
            watched.has_pages = true;
            watched.huge_bytes += statistics.anonymous_huge;
            if statistics.ksm > 0 {
                watched.with_merged.push(range.clone());
            }
            if !mapping.path.as_os_str().is_empty() && mapping.path.has_root() {
                watched.of_file.push(range.clone());
            }
            let present = statistics.anonymous / page;
            let whole = sksm_scan::Range::new(range.start, range.end, present);
            if present * SPARSE >= range.end - range.start {
                see(whole);
                continue;
            }
            let addresses = range.start * page..range.end * page;
            let Some(found) = pagemap::anonymous_pages(&files.pagemap, addresses) else {
                see(whole);
                continue;
            };
            let found = found
                .into_iter()
                .map(|range| range.start / page..range.end / page);
            let mut last: Option<sksm_scan::Range> = None;
            for part in found {
                match &mut last {
                    Some(last) if part.start < last.end + NEAR => {
                        last.end = part.end;
                        last.present += part.end - part.start;
                    }
                    _ => {
                        let present = part.end - part.start;
                        let part = sksm_scan::Range::new(part.start, part.end, present);
                        last.replace(part).into_iter().for_each(&mut *see);
                    }
                }
            }
            last.into_iter().for_each(&mut *see);
        }
        if !watched.has_pages && watched.files.take().is_some() {
            self.descriptors += 2;
        }
        Ok(())
    }

    fn look(
        &mut self,
        id: u64,
        pages: Range<u64>,
        known: &Known,
        see: &mut dyn FnMut(u64, Seen),
    ) -> Result<Whole, Gone> {
        let files = self.files(id)?;
        let watched = self.watched.get(&id).ok_or(Gone)?;
        let page = sksm::page_size() as u64;
        let addresses = pages.start * page..pages.end * page;
        let entries = pagemap::entries(&files.pagemap, pages.clone()).map_err(|_| Gone)?;
        let shared = |entry: &Entry| entry.anonymous() && !entry.exclusive();
        let zero = match entries.iter().any(shared) {
            true => zero_pages(&files.pagemap, addresses.clone()),
            false => Vec::new(),
        };
        let with_merged = covers(&watched.with_merged, pages.start);
        // Of others' pages a sample is taken one by one.
        let mut seen: Vec<Option<Seen>> = Vec::with_capacity(entries.len());
        let mut own: Vec<usize> = Vec::new();
        for (number, entry) in pages.clone().zip(&entries) {
            let is_merged = known.merged(number);
            seen.push(if entry.swapped() {
                Some(Seen::Swapped)
            } else if !entry.anonymous() || covers(&zero, number) {
                None
            } else if shared(entry) && is_merged {
                Some(Seen::Merged)
            } else if shared(entry) || is_merged || with_merged {
                let mut room = [0; sample::LEN];
                let read = files.memory.sample_shared(number * page, &mut room);
                let key = sample::key(&room) as u32;
                let seen = match shared(entry) {
                    true => Seen::Shared(key),
                    false => Seen::Own(key),
                };
                read.then_some(seen)
            } else {
                own.push((number - pages.start) as usize);
                None
            });
        }
        let mut room = [0; SAMPLES * sample::LEN];
        let mut rest = &own[..];
        while !rest.is_empty() {
            let now = &rest[..rest.len().min(SAMPLES)];
            let addrs = now.iter().map(|at| (pages.start + *at as u64) * page);
            let room = &mut room[..now.len() * sample::LEN];
            let done = files.memory.sample(addrs, room).ok_or(Gone)?;
            for (at, bytes) in now.iter().zip(room.chunks_exact(sample::LEN)).take(done) {
                seen[*at] = Some(Seen::Own(sample::key(bytes) as u32));
            }
            // What comes next went meanwhile.
            rest = &rest[if done < now.len() { done + 1 } else { done }..];
        }
        for (number, seen) in pages.clone().zip(seen) {
            if let Some(seen) = seen {
                see(number, seen);
            }
        }
        let size = huge_page();
        let whole = addresses.end - addresses.start == size && addresses.start % size == 0;
        let huge = whole
            && pagemap::huge_pages(&files.pagemap, addresses.clone())
                .is_none_or(|huge| huge == [addresses]);
        Ok(match huge {
            true => Whole::HugePage,
            false => Whole::Pages,
        })
    }

    fn read(
        &mut self,
        id: u64,
        pages: &[u64],
        see: &mut dyn FnMut(u64, Content),
    ) -> Result<(), Gone> {
        let files = self.files(id)?;
        let watched = self.watched.get(&id).ok_or(Gone)?;
        let page = sksm::page_size();
        let size = page as u64;
        let mut places: Vec<Place> = Vec::with_capacity(pages.len());
        let near = |a: &u64, b: &u64| b.checked_sub(*a).is_some_and(|gap| gap <= NEAR);
        for run in pages.chunk_by(near) {
            let (first, last) = (run[0], run[run.len() - 1]);
            let entries = pagemap::entries(&files.pagemap, first..last + 1).map_err(|_| Gone)?;
            let there = (run
                .iter()
                .map(|number| (number, entries[(number - first) as usize])))
            .filter(|(_, entry)| entry.anonymous());
            places.extend(there.map(|(number, entry)| (number * size, entry)));
        }
        let merged = |place: &Place| covers(&watched.with_merged, place.0 / size);
        for part in places.chunk_by(|a, b| merged(a) == merged(b)) {
            let mut rest = part;
            while let Some(first) = rest.first() {
                let now = &rest[..rest.len().min(READS)];
                let done = files.memory.read(now, merged(first), &mut self.room);
                let read = now.iter().zip(self.room.chunks_exact(page)).take(done);
                let hashes: Vec<u128> = read
                    .clone()
                    .map(|(_, bytes)| XxHash3_128::oneshot(bytes))
                    .collect();
                let mut parts: Vec<Option<u64>> =
                    hashes.iter().map(|hash| Some(low(*hash))).collect();
                nodes::part(
                    watched.pid,
                    &now[..done],
                    &mut parts,
                    low(self.hash_of_zeros),
                );
                for (((place, bytes), hash), part) in read.zip(hashes).zip(parts) {
                    let number = place.0 / size;
                    let hash = hash ^ u128::from(low(hash) ^ part.unwrap_or_default());
                    let mut content = Content::new(sample::key_of_page(bytes) as u32, hash);
                    content.frame = place.1.frame(number);
                    content.zero =
                        !covers(&watched.of_file, number) && bytes.iter().all(|byte| *byte == 0);
                    see(number, content);
                }
                rest = &rest[if done < now.len() { done + 1 } else { done }..];
            }
        }
        Ok(())
    }

    fn merge(&mut self, id: u64, pages: &[Range<u64>]) -> Result<Merged, Gone> {
        let watched = self.watched.get(&id).ok_or(Gone)?;
        let pid = watched.pid;
        hung::reads(pid);
        let process = Process::open(pid).map_err(|_| Gone)?;
        if !watched.runs_still() {
            return Err(Gone);
        }
        let page = sksm::page_size();
        let regions: Vec<Region> = (pages.iter())
            .map(|range| {
                let len = (range.end - range.start) as usize;
                Region::new(range.start as usize * page, len * page)
            })
            .collect();
        let before = MergeStatistics::of(pid).unwrap_or_default();
        let pidfd = process.pidfd().ok_or(Gone)?;
        if let Err(error) = merge_remote_each(pidfd, &regions) {
            if !matches!(error, Error::Gone { .. }) {
                self.refuse(id, &error);
            }
            return Err(Gone);
        }
        let after = MergeStatistics::of(pid).map_err(|_| Gone)?;
        Ok(Merged::between(&before, &after))
    }

    fn zero(&self) -> u32 {
        self.zero_key
    }
}

/// The part of a hash that is another one on each node, where nodes are apart.
fn low(hash: u128) -> u64 {
    hash as u64
}

/// Numbers of pages that are the zero page.
fn zero_pages(pagemap: &File, addresses: Range<u64>) -> Vec<Range<u64>> {
    let page = sksm::page_size() as u64;
    let zero = pagemap::zero_pages(pagemap, addresses).unwrap_or_default();
    zero.into_iter()
        .map(|range| range.start / page..range.end / page)
        .collect()
}
