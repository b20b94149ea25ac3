//! Trace events: what they say about a call, about each page, and that they say nothing when they are off.

use std::os::fd::AsFd;

use anyhow::{Context, Result, ensure};
use sksm_guest::harness::report::{Test, test};
use sksm_guest::machine::tracefs::{Event, Trace};
use sksm_guest::memory::map::Map;
use sksm_guest::memory::process::{Child, pipe};

use crate::expect::merged;
use crate::pins::splice;

pub const TESTS: &[Test] = &[
    test("trace/merge-and-publish", merge_and_publish),
    test("trace/withdraw", withdraw),
    test("trace/busy", busy),
    test("trace/other-process", other_process),
    test("trace/each-alone-and-off", each_alone_and_off),
];

const EVENTS: [&str; 5] = [
    "sksm_call",
    "sksm_merge",
    "sksm_publish",
    "sksm_withdraw",
    "sksm_busy",
];

fn all_on() -> Result<Trace> {
    let trace = Trace::new()?;
    trace.set("sksm", true)?;
    Ok(trace)
}

/// Of the events with this name: address and page.
fn pages(events: &[Event], name: &str) -> Result<Vec<(usize, u64)>> {
    let named = events.iter().filter(|event| event.name == name);
    named
        .map(|event| Ok((event.hex("addr")? as usize, event.hex("pfn")?)))
        .collect()
}

/// The one call among the events did this: pages scanned, merged, published, busy.
fn one_call(events: &[Event], wanted: [u64; 4]) -> Result<&Event> {
    let calls: Vec<_> = (events.iter().filter(|event| event.name == "sksm_call")).collect();
    ensure!(calls.len() == 1, "calls: {calls:?}");
    for (name, wanted) in ["scanned", "merged", "published", "busy"]
        .into_iter()
        .zip(wanted)
    {
        let found = calls[0].decimal(name)?;
        ensure!(found == wanted, "{name} {found}, not {wanted}: {calls:?}");
    }
    Ok(calls[0])
}

/// All events are this thread's and about the memory of one process, which is returned.
fn one_mm(events: &[Event]) -> Result<&str> {
    let mm = events.first().context("no event")?.field("mm")?;
    for event in events {
        ensure!(event.field("mm")? == mm, "not of {mm}: {event:?}");
        ensure!(event.pid == std::process::id() as i32, "whose is {event:?}");
    }
    Ok(mm)
}

fn count(events: &[Event], wanted: usize) -> Result<()> {
    ensure!(events.len() == wanted, "not {wanted} events: {events:?}");
    Ok(())
}

fn merge_and_publish() -> Result<()> {
    let map = Map::filled(&[1, 1, 2, 0, 2])?;
    let before = map.pfns()?;
    let trace = all_on()?;
    map.merge()?;
    let events = trace.take()?;
    let now = map.pfns()?;
    let published = pages(&events, "sksm_publish")?;
    let wanted = [0, 2].map(|page| (map.page(page), before[page]));
    ensure!(published == wanted, "published {published:x?}");
    let merged = pages(&events, "sksm_merge")?;
    let wanted = [1, 3, 4].map(|page| (map.page(page), now[page]));
    ensure!(merged == wanted, "merged {merged:x?}, not {wanted:x?}");
    ensure!(now[1] == before[0] && now[4] == before[2], "not as traced");
    one_call(&events, [5, 3, 2, 0])?;
    count(&events, 6)?;
    let mm = one_mm(&events)?.to_owned();
    // There is nothing left to do, and it says so.
    map.merge()?;
    let events = trace.take()?;
    one_call(&events, [0; 4])?;
    count(&events, 1)?;
    ensure!(one_mm(&events)? == mm, "another address space: {events:?}");
    Ok(())
}

fn withdraw() -> Result<()> {
    let map = Map::filled(&[1, 1, 2])?;
    map.merge()?;
    let trace = all_on()?;
    let withdrawn = |page: usize| -> Result<()> {
        let pfn = map.pfn(page)?;
        map.put(page, 100, 9);
        let events = trace.take()?;
        let found = pages(&events, "sksm_withdraw")?;
        ensure!(found == [(map.page(page), pfn)], "{found:x?}");
        one_mm(&events)?;
        count(&events, 1)
    };
    withdrawn(2)?;
    map.put(0, 100, 9);
    count(&trace.take()?, 0).context("a copy on write")?;
    withdrawn(1)?;
    map.put(1, 101, 9);
    count(&trace.take()?, 0).context("an ordinary page")?;
    map.expect_after(0, 101, 1)
}

fn busy() -> Result<()> {
    let (_out, into) = pipe()?;
    let map = Map::filled(&[5; 4])?;
    splice(&map, 2, &into)?;
    let trace = all_on()?;
    map.merge()?;
    let events = trace.take()?;
    one_call(&events, [2, 1, 1, 2])?;
    let busy = events.iter().filter(|event| event.name == "sksm_busy");
    let found = busy
        .map(|event| event.hex("addr"))
        .collect::<Result<Vec<_>>>()?;
    let wanted = [0, 1].map(|page| map.page(page) as u64);
    ensure!(found == wanted, "busy: {found:x?}");
    one_mm(&events)?;
    count(&events, 5)?;
    map.expect_all(|_| 5)
}

/// The process is the one that asks, the memory is the other's.
fn other_process() -> Result<()> {
    let map = Map::filled(&[5; 4])?;
    let trace = all_on()?;
    let child = Child::spawn(|parent| {
        map.merge_pages(0..1)?;
        parent.meet()
    })?;
    child.pause()?;
    let events = trace.take()?;
    count(&events, 2)?;
    ensure!(events[0].pid == child.pid(), "whose is {events:?}");
    let theirs = events[0].field("mm")?.to_owned();
    sksm::merge_remote(child.pidfd()?.as_fd(), &[(map.addr(), map.len())])?;
    let events = trace.take()?;
    one_call(&events, [3, 3, 0, 0])?;
    ensure!(one_mm(&events)? == theirs, "whose memory is {events:?}");
    map.merge()?;
    let events = trace.take()?;
    ensure!(one_mm(&events)? != theirs, "whose memory is {events:?}");
    map.expect_all(|_| 5)?;
    child.go()?;
    child.join()
}

/// Does something that each of the events has to tell of.
fn everything() -> Result<()> {
    let (_out, into) = pipe()?;
    let map = Map::filled(&[5; 4])?;
    splice(&map, 1, &into)?;
    map.merge()?;
    merged(1, 6)?.put(0, 0, 1);
    Ok(())
}

fn each_alone_and_off() -> Result<()> {
    let trace = Trace::new()?;
    everything()?;
    count(&trace.take()?, 0).context("never turned on")?;
    for name in EVENTS {
        let event = format!("sksm/{name}");
        trace.set(&event, true)?;
        everything()?;
        trace.set(&event, false)?;
        let events = trace.take()?;
        ensure!(!events.is_empty(), "{name} is silent");
        let other = events.iter().find(|event| event.name != name);
        ensure!(other.is_none(), "{name} alone is on: {other:?}");
        everything()?;
        count(&trace.take()?, 0).with_context(|| format!("{name} is off again"))?;
    }
    Ok(())
}
