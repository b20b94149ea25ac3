//! Workers whose memory the garbage collector moves about, as the guide has them: those of Node.js.

use anyhow::{Result, bail, ensure};
use sksm_guest::harness::report::{Test, test};

use crate::arrays::needed;
use crate::guide::{Workers, randomised};

pub const TESTS: &[Test] = &[test("guide/node-workers", node)];

const NODE: &str = include_str!("../../../../../examples/workers/workers.js");

/// How much merges differs from run to run, as the guide says; something does, before and after requests.
fn node() -> Result<()> {
    randomised()?;
    needed("node")?;
    let file = ("workers.js", NODE);
    let measured = Workers::start(2, &["node", "workers.js"], file)?.measure()?;
    eprintln!("saved, after requests, merged again: {measured:.0?}");
    let [first, .., again] = measured.saved[..] else {
        bail!("{measured:?}");
    };
    ensure!(first > 2.0 && again > 2.0, "{measured:?}");
    Ok(())
}
