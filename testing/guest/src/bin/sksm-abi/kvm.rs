//! Virtual machines whose memory is merged from outside: they see the same bytes, and lose no write. KVM hears of changes
//! through mmu notifiers.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::sysfs::Counters;
use sksm_guest::memory::content::content;
use sksm_guest::memory::map::Map;
use sksm_guest::memory::process::Child;
use sksm_guest::page::{PAGE, TABLE, WORDS};
use sksm_guest::skip::skip;

use crate::expect::{copies, merged, merging, one_page};
use crate::writers::{beside, for_a_while};

pub const TESTS: &[Test] = &[
    test("kvm/sees-the-same-bytes", same_bytes),
    test("kvm/host-writes-are-seen", host_writes),
    test("kvm/guest-writes-are-its-own", guest_writes),
    test("kvm/pages-are-freed", freed),
    test("kvm/counts-while-merging", counts),
    test("kvm/reads-while-merging", reads),
];

#[cfg_attr(target_arch = "x86_64", path = "kvm/x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "kvm/aarch64.rs")]
mod processor;

// What the machine runs, at these places of its page of code. Each program ends with a result.

/// A sum, onto `sum`, of `count` words of 32 bits at `from`, that depends on their order.
const SUM: u64 = 0;
/// Writes `sum` to the word at `from`.
const WRITE: u64 = 0x100;
/// `count` times: each page from 0x8000 to 0x10000 must begin with `value`, and counts up; `value` too. The result: `value` in
/// the end, or what was found in its place.
const COUNT: u64 = 0x200;
/// `count` times: each page from 0x8000 to 0x10000 must begin with `value`. The result: `value`, or what was found in its place.
const READ: u64 = 0x300;

/// What a program begins with.
struct Start {
    at: u64,
    sum: u64,
    value: u64,
    count: u64,
    from: u64,
}

/// As much as real mode reaches from one segment.
const PAGES: usize = 16;
const CODE_PAGE: usize = 1;
/// The pages that a machine uses as data: the upper half.
const DATA: std::ops::Range<usize> = 8..PAGES;

/// A virtual machine, whose memory is a mapping of this process.
struct Machine<'a> {
    memory: &'a Map,
    cpu: VcpuFd,
    // The machine lives as long as these.
    _vm: VmFd,
    _kvm: Kvm,
}

fn needed() -> Result<()> {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Ok(()),
        Err(error) if !processor::can_virtualize()? => {
            skip(format!("no virtual machines: /dev/kvm: {error}"))
        }
        Err(error) => Err(error).context("/dev/kvm (CONFIG_KVM)"),
    }
}

impl<'a> Machine<'a> {
    fn new(memory: &'a Map) -> Result<Self> {
        ensure!(memory.pages() == PAGES, "a machine has {PAGES} pages");
        for (at, code) in processor::code() {
            put_bytes(memory, CODE_PAGE, at as usize, code);
        }
        let kvm = Kvm::new().context("/dev/kvm")?;
        let vm = kvm.create_vm().context("cannot make a machine")?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: memory.len() as u64,
            userspace_addr: memory.addr() as u64,
        };
        // SAFETY: the mapping is borrowed for longer than the machine lives, and accessed by volatile reads and writes only.
        unsafe { vm.set_user_memory_region(region) }.context("cannot give it memory")?;
        let cpu = vm.create_vcpu(0).context("cannot make a CPU")?;
        processor::set_up(&vm, &cpu)?;
        Ok(Self {
            memory,
            cpu,
            _vm: vm,
            _kvm: kvm,
        })
    }

    /// Runs one of the programs to its end; its result.
    fn run(&mut self, program: u64, sum: u64, value: u64, count: u64, from: u64) -> Result<u32> {
        let start = Start {
            at: (CODE_PAGE * PAGE) as u64 + program,
            sum,
            value,
            count,
            from,
        };
        processor::run(&mut self.cpu, &start).with_context(|| self.memory_as_it_is())
    }

    /// For errors: whether the machine's code is as it was put there, and what its pages begin and end with. What an exception
    /// pushes, where a machine has no stack, is at the end of the last page.
    fn memory_as_it_is(&self) -> String {
        let bytes = self.memory.part(CODE_PAGE..CODE_PAGE + 1).bytes();
        let holds = |(at, code): &(u64, &[u8])| bytes[*at as usize..].starts_with(code);
        let code = match processor::code().iter().all(holds) {
            true => "right",
            false => "wrong",
        };
        let ends = |page| {
            let word = |word| self.memory.get(page, word);
            format!("{:#x}..{:#x}", word(0), word(WORDS - 1))
        };
        let pages: Vec<String> = (0..PAGES).map(ends).collect();
        format!(
            "a machine whose code is {code}, with pages {}",
            pages.join(" ")
        )
    }

    /// The sum of a page as the machine sees it.
    fn sum(&mut self, page: usize) -> Result<u32> {
        self.run(SUM, 0, 0, (PAGE / 4) as u64, (page * PAGE) as u64)
    }

    fn write(&mut self, page: usize, value: u32) -> Result<()> {
        self.run(WRITE, value.into(), 0, 0, (page * PAGE) as u64)
            .map(drop)
    }

    /// All data pages as the machine sees them.
    fn expect(&mut self, id: impl Fn(usize) -> u64) -> Result<()> {
        for page in DATA {
            let (found, right) = (
                self.sum(page)?,
                sum((0..WORDS).map(|word| content(id(page), word))),
            );
            ensure!(
                found == right,
                "the machine sees other bytes in page {page}: sum {found:#x}, not {right:#x}"
            );
        }
        self.memory
            .part(DATA)
            .expect_all(|page| id(DATA.start + page))
    }
}

/// As the machine sums.
fn sum(words: impl Iterator<Item = u64>) -> u32 {
    words
        .flat_map(|word| [word as u32, (word >> 32) as u32])
        .fold(0u32, |sum, half| sum.rotate_left(1).wrapping_add(half))
}

fn put_bytes(map: &Map, page: usize, at: usize, bytes: &[u8]) {
    for (index, chunk) in bytes.chunks(8).enumerate() {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        map.put(page, at / 8 + index, u64::from_ne_bytes(word));
    }
}

/// Two contents for each machine's pages, so that some merge within it.
fn id(page: usize) -> u64 {
    50 + page as u64 / 2
}

/// A process with a machine that has read all its data once, so that KVM maps it. Then it does the rest, step by step.
fn machine(
    map: &Map,
    rest: impl FnOnce(&mut Machine, &dyn Fn() -> Result<()>) -> Result<()>,
) -> Result<Child> {
    let child = Child::spawn(|parent| {
        map.fill_all(id);
        let mut machine = Machine::new(map)?;
        machine.expect(id)?;
        let meet = || parent.meet();
        meet()?;
        machine.expect(id)?;
        rest(&mut machine, &meet)?;
        meet()
    })?;
    child.pause()?;
    Ok(child)
}

/// Where the data of a machine is in memory.
fn pfns(child: &Child, map: &Map) -> Result<Vec<u64>> {
    child.pagemap()?.pfns(map.page(DATA.start), DATA.len())
}

/// Merges the machines' data and this process's own from outside: one copy of each content is left.
fn merge(map: &Map, machines: &[&Child]) -> Result<()> {
    map.fill_all(id);
    let data = map.part(DATA);
    data.merge()?;
    let ours = data.pfns()?;
    ensure!(copies(&ours) == DATA.len() / 2, "not merged");
    for child in machines {
        sksm::merge_remote(child.pidfd()?.as_fd(), &[(data.addr(), data.len())])?;
        ensure!(
            pfns(child, map)? == ours,
            "a machine's memory did not merge"
        );
    }
    Ok(())
}

fn end(child: Child) -> Result<()> {
    child.go()?;
    child.join()
}

fn memory() -> Result<Map> {
    needed()?;
    let map = Map::anon(PAGES)?;
    map.no_huge();
    Ok(map)
}

fn same_bytes() -> Result<()> {
    let map = memory()?;
    let machines = [machine(&map, |_, _| Ok(()))?, machine(&map, |_, _| Ok(()))?];
    merge(&map, &[&machines[0], &machines[1]])?;
    for child in &machines {
        // It reads everything once more.
        child.go()?;
        child.pause()?;
    }
    ensure!(
        pfns(&machines[0], &map)? == pfns(&machines[1], &map)?,
        "reading parted pages"
    );
    machines.into_iter().try_for_each(end)?;
    map.expect_all(id)
}

/// After a merge, and after a write to merged memory by the host, the machine sees the new page and not the old one.
fn host_writes() -> Result<()> {
    let map = memory()?;
    let first = machine(&map, |machine, _| {
        for page in DATA {
            machine.memory.fill(page, 100 + page as u64);
            machine.expect(|other| {
                if other <= page {
                    100 + other as u64
                } else {
                    id(other)
                }
            })?;
        }
        Ok(())
    })?;
    let second = machine(&map, |_, _| Ok(()))?;
    merge(&map, &[&first, &second])?;
    first.go()?;
    first.pause()?;
    second.go()?;
    second.pause()?;
    [first, second].into_iter().try_for_each(end)?;
    map.expect_all(id)
}

/// A write inside a machine is for this machine alone.
fn guest_writes() -> Result<()> {
    let map = memory()?;
    const VALUE: u32 = 0xdead_beef;
    let first = machine(&map, |machine, meet| {
        let pages = [8, 11, 14];
        for page in pages {
            machine.write(page, VALUE)?;
        }
        let check = |machine: &mut Machine| {
            for page in DATA {
                let written = pages.contains(&page);
                let right = |word| match content(id(page), word) {
                    found if written && word == 0 => found >> 32 << 32 | u64::from(VALUE),
                    found => found,
                };
                ensure!(
                    machine.sum(page)? == sum((0..WORDS).map(right)),
                    "the machine lost its write, page {page}"
                );
                ensure!(
                    machine.memory.get(page, 0) == right(0),
                    "the host does not see the write, page {page}"
                );
                machine.memory.expect_after(page, 1, id(page))?;
            }
            Ok(())
        };
        check(machine)?;
        meet()?;
        check(machine)
    })?;
    let second = machine(&map, |machine, meet| {
        meet()?;
        machine.expect(id)
    })?;
    merge(&map, &[&first, &second])?;
    for child in [&first, &second] {
        child.go()?;
        child.pause()?;
    }
    map.expect_all(id)?;
    // What was not written is shared still, and merging again finds what was.
    let after = [pfns(&first, &map)?, pfns(&second, &map)?];
    ensure!(
        copies(&after.concat()) == DATA.len() / 2 + 3,
        "{} pages",
        copies(&after.concat())
    );
    sksm::merge_remote(first.pidfd()?.as_fd(), &[(map.addr(), map.len())])?;
    for child in [&first, &second] {
        child.go()?;
        child.pause()?;
    }
    [first, second].into_iter().try_for_each(end)?;
    map.expect_all(id)
}

/// A machine holds no page beyond its end.
fn freed() -> Result<()> {
    let map = memory()?;
    let start = Counters::now()?;
    let machines = [machine(&map, |_, _| Ok(()))?, machine(&map, |_, _| Ok(()))?];
    merge(&map, &[&machines[0], &machines[1]])?;
    let merged = start.change()?;
    let [first, second] = machines;
    let wanted = |mappings: usize| (DATA.len() / 2, mappings * DATA.len() - DATA.len() / 2);
    let expect = |what: &str, change: Counters, wanted: (usize, usize)| {
        let found = (change.pages_shared as usize, change.pages_sharing as usize);
        ensure!(found == wanted, "{what}: {change:?}");
        Ok(())
    };
    expect("two machines and this process", merged, wanted(3))?;
    first.go()?;
    first.pause()?;
    end(first)?;
    expect("one machine and this process", start.change()?, wanted(2))?;
    drop(map);
    // The second machine's pages are its own, and nobody else's.
    expect("one machine", start.change()?, wanted(1))?;
    second.go()?;
    second.pause()?;
    end(second)?;
    expect("nobody", start.change()?, (0, 0))
}

/// A machine that counts in several pages all the time, while they merge whenever they are equal.
fn counts() -> Result<()> {
    const ROUNDS: u64 = 200;
    let map = memory()?;
    let mut machine = Machine::new(&map)?;
    let data = map.part(DATA);
    let mut value = 0;
    let count = |_| {
        value += ROUNDS;
        let found = machine.run(COUNT, 0, value - ROUNDS, ROUNDS, 0)?;
        ensure!(
            u64::from(found) == value,
            "the machine counted to {found} instead of {value}"
        );
        Ok(())
    };
    merging(|| beside(1, || data.merge(), |_| for_a_while(count)))?;
    eprintln!("counted to {value}");
    for page in DATA {
        ensure!(
            map.get(page, 0) == value,
            "page {page} holds {} instead of {value}",
            map.get(page, 0)
        );
    }
    data.merge()?;
    one_page(&data.pfns()?)
}

/// A machine that reads its pages all the time, while they are replaced by equal ones: it never sees what becomes of the old
/// frames. It maps them anew between the two changes of a merge, if those are far apart: the batch has many more pages.
fn reads() -> Result<()> {
    needed()?;
    const BATCH: usize = 128;
    /// Merges that are enough, and those that there have to be, however slow they are.
    const MERGES: usize = 50;
    const LEAST: usize = 10;
    const ID: u64 = 60;
    let twins = merged(2, ID)?;
    let map = Map::aligned(BATCH, TABLE, 0)?;
    map.fill_all(|_| ID);
    // At its end: their frames are freed last, so they are used again first.
    let memory = map.part(BATCH - PAGES..BATCH);
    let mut machine = Machine::new(&memory)?;
    let replace = || {
        // The same bytes in frames of their own, which are free after the merge.
        (0..BATCH - PAGES).for_each(|page| map.fill(page, ID));
        DATA.for_each(|page| memory.fill(page, ID));
        let start = Counters::now()?;
        map.merge()?;
        // A page that the machine is about to map is busy.
        let merged = start.change()?.pages_merged as usize;
        ensure!(
            merged > BATCH / 2,
            "{merged} of {BATCH} pages were replaced"
        );
        // Whoever gets them next writes something else.
        let _others = Map::filled(&[ID + 1; 2 * BATCH])?;
        std::thread::sleep(Duration::from_millis(2));
        Ok(())
    };
    let right = content(ID, 0) as u32;
    let read = |_: u64| {
        let found = machine.run(READ, 0, right.into(), 1000, 0)?;
        ensure!(
            found == right,
            "the machine reads {found:#x} instead of {right:#x}"
        );
        Ok(())
    };
    let end = Instant::now() + Duration::from_secs(20);
    // After an error there the count is huge.
    let read_all = |merges: &AtomicUsize| {
        (0..)
            .take_while(|_| {
                let merges = merges.load(Relaxed);
                merges < LEAST || merges < MERGES && Instant::now() < end
            })
            .try_for_each(read)
    };
    merging(|| beside(1, replace, read_all))?;
    twins.expect_all(|_| ID)
}
