//! What long steps show on stderr: a bar on a terminal, a line now and then elsewhere. There may be several at a time.

use std::{
    cell::{Cell, RefCell},
    io::IsTerminal,
    sync::LazyLock,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The bars of all steps, as several may be under way.
static BARS: LazyLock<MultiProgress> =
    LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(8)));

/// How often a step speaks where nobody watches a terminal.
const LINE_EVERY: Duration = Duration::from_secs(20);

pub struct Step {
    name: String,
    started: Instant,
    bar: Option<ProgressBar>,
    last_line: Cell<Instant>,
    said_something: Cell<bool>,
    percent: Cell<Option<u64>>,
    detail: RefCell<String>,
}

impl Step {
    pub fn begin(name: impl Into<String>) -> Self {
        let name = name.into();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = BARS.add(ProgressBar::no_length());
            bar.set_style(spinner());
            bar.set_prefix(name.clone());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self {
            name,
            started: Instant::now(),
            bar,
            last_line: Cell::new(Instant::now()),
            said_something: Cell::new(false),
            percent: Cell::new(None),
            detail: RefCell::new(String::new()),
        }
    }

    /// What is being worked on right now.
    pub fn detail(&self, text: &str) {
        let text = text.trim();
        self.detail.replace(text.to_owned());
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
        }
        self.tick();
    }

    /// How far the step is, once that is known.
    pub fn percent(&self, percent: u64) {
        if let Some(bar) = &self.bar {
            if self.percent.get().is_none() {
                bar.set_style(gauge());
                bar.set_length(100);
            }
            bar.set_position(percent);
        }
        self.percent.set(Some(percent));
        self.tick();
    }

    /// Prints a line to stdout, clear of all bars.
    pub fn print(&self, line: &str) {
        match &self.bar {
            Some(_) => BARS.suspend(|| println!("{line}")),
            None => println!("{line}"),
        }
        self.last_line.set(Instant::now());
    }

    /// To be called now and then; cheap.
    pub fn tick(&self) {
        if self.bar.is_none() && self.last_line.get().elapsed() >= LINE_EVERY {
            self.last_line.set(Instant::now());
            self.said_something.set(true);
            let percent = match self.percent.get() {
                Some(percent) => format!(", {percent} %"),
                None => String::new(),
            };
            let mut detail = self.detail.borrow().clone();
            if !detail.is_empty() {
                detail.insert_str(0, ": ");
            }
            eprintln!("{}: {}{percent}{detail}", self.name, self.elapsed());
        }
    }

    /// Ends the step with its time.
    pub fn done(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        // Steps that took no time are no news.
        if self.said_something.get() || self.started.elapsed() >= Duration::from_secs(1) {
            eprintln!("{}: done in {}", self.name, self.elapsed());
        }
    }

    /// How long it has taken so far.
    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    fn elapsed(&self) -> String {
        let seconds = self.started.elapsed().as_secs();
        if seconds < 60 {
            format!("{seconds} s")
        } else {
            format!("{} min {:02} s", seconds / 60, seconds % 60)
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {prefix}  {elapsed}  {wide_msg}")
        .expect("the template is constant")
}

fn gauge() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {prefix}  {elapsed}  [{bar:24}] {pos} %  {wide_msg}")
        .expect("the template is constant")
}
