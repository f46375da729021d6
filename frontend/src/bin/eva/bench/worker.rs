//! Cases that run in another process: one that hangs or takes its process with it costs its own row and no other.
//!
//! The other process prints a line [`BEGIN`] with the case's number before each case, its row, and a line [`END`]. When
//! it ends early, another one goes on behind the case that it was at.

use super::super::ui::emit;
use super::{Print, measure};
use anyhow::{Context, bail};
use eva::bench::{Case, Lab, Measured};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

const BEGIN: &str = "@begin ";
/// Followed by whether the case was right.
const END: &str = "@end ";

/// How long the other process may take before its first case: it starts the device and makes random numbers.
const START: Duration = Duration::from_secs(120);

/// Runs the cases from `first` on for [`watch`]; gives up where the device does not work any more.
pub fn work(cases: &[Case], first: usize, print: &Print<'_>) -> anyhow::Result<bool> {
    let mut lab = Lab::new(print.options.clone())?;
    let device = lab.device_name();
    for (i, case) in cases.iter().enumerate().skip(first) {
        emit(&format!("{BEGIN}{i} {device}\n"))?;
        let outcome = measure(&mut lab, case);
        let right = outcome.as_ref().is_ok_and(Measured::is_right);
        emit(&format!("{}{END}{right}\n", print.row(case, &outcome, &device)))?;
        // A kernel that failed is the end of its context.
        if outcome.is_err() && lab.wait().is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Has other processes run the cases, each within `limit`, and prints their rows; whether all were right.
pub fn watch(cases: &[Case], limit: Duration, print: &Print<'_>) -> anyhow::Result<bool> {
    let (mut next, mut right) = (0, true);
    let mut device = String::new();
    while next < cases.len() {
        let (mut child, lines) = start(next)?;
        let mut begun = None;
        let mut begun_any = false;
        let why = loop {
            let wait = if begun_any { limit } else { START };
            match lines.recv_timeout(wait) {
                Ok(line) if line.starts_with(BEGIN) => {
                    let (number, name) = line[BEGIN.len()..].split_once(' ').unwrap_or_default();
                    begun = Some(number.parse::<usize>().context("another process talks nonsense")?);
                    begun_any = true;
                    device = name.into();
                }
                Ok(line) if line.starts_with(END) => {
                    right &= &line[END.len()..] == "true";
                    next = begun.take().map_or(next, |i| i + 1);
                }
                Ok(line) => emit(&format!("{line}\n"))?,
                Err(RecvTimeoutError::Timeout) => {
                    break format!("it did not end within {} s", wait.as_secs());
                }
                Err(RecvTimeoutError::Disconnected) => break String::new(),
            }
        };
        let _ = if why.is_empty() { Ok(()) } else { child.kill() };
        let status = child.wait()?;
        let why = if why.is_empty() { format!("its process ended: {status}") } else { why };
        match begun {
            Some(i) => {
                right = false;
                emit(&print.row(&cases[i], &Err(why), &device))?;
                next = i + 1;
            }
            None if !begun_any => bail!("the cases cannot be run: {why}"),
            None => {}
        }
    }
    Ok(right)
}

/// Starts a process that runs the cases from `first` on; with the lines that it prints.
fn start(first: usize) -> anyhow::Result<(Child, Receiver<String>)> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).args(["--worker", &first.to_string()]);
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start another process")?;
    let output = child.stdout.take().context("another process has no output")?;
    let (send, lines) = channel();
    std::thread::spawn(move || {
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        // The receiver is gone once the process was given up.
        lines.try_for_each(|line| send.send(line).map_err(drop))
    });
    Ok((child, lines))
}
