//! What a run writes down: `metrics.jsonl`, a line a step, and TensorBoard's events.
//!
//! A line has `step`, `loss`, `lr`, `grad_norm` (before clipping), `tokens` (all so far), `tokens_per_second`, `seconds` (of the
//! step), `memory` (bytes), and what the model reports, such as `balance.0.max` (the load of the fullest expert, relative to the
//! mean). Lines with `eval_loss` are of held-out data.

use serde_json::{Map, Value, json};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// The file of lines.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// Writes metrics.
pub struct Metrics {
    lines: File,
    events: Option<Events>,
}

impl Metrics {
    /// Begins, or goes on after `step`: what was written of later steps is of a run that was interrupted, and is dropped.
    pub fn open(folder: &Path, step: u64, tensorboard: bool) -> io::Result<Self> {
        let path = folder.join(METRICS_FILE);
        keep_up_to(&path, step)?;
        let lines = OpenOptions::new().create(true).append(true).open(&path)?;
        let events = if tensorboard { Some(Events::create(folder, step)?) } else { None };
        Ok(Self { lines, events })
    }

    /// Writes numbers of a step. What is not finite is `null` in the line.
    pub fn write(&mut self, step: u64, numbers: &[(String, f64)]) -> io::Result<()> {
        let mut line = Map::new();
        line.insert("step".into(), json!(step));
        line.extend(numbers.iter().map(|(name, x)| (name.clone(), number(*x))));
        writeln!(self.lines, "{}", Value::Object(line))?;
        match &mut self.events {
            Some(events) => events.scalars(step, numbers),
            None => Ok(()),
        }
    }
}

/// Whole numbers without a point.
fn number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 9e15 { json!(x as i64) } else { json!(x) }
}

/// Drops the lines of steps after `step`, and one that was not finished.
fn keep_up_to(path: &Path, step: u64) -> io::Result<()> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let mut kept = Vec::new();
    for line in BufReader::new(file).lines() {
        let line = line?;
        let of = serde_json::from_str::<Value>(&line).ok().and_then(|line| line["step"].as_u64());
        if of.is_some_and(|of| of <= step) {
            kept.extend_from_slice(line.as_bytes());
            kept.push(b'\n');
        }
    }
    let part = path.with_extension("part");
    fs::write(&part, kept)?;
    fs::rename(&part, path)
}

/// The lines of a file of metrics.
pub fn read(path: &Path) -> io::Result<Vec<Map<String, Value>>> {
    let lines = BufReader::new(File::open(path)?).lines();
    let parse = |line: io::Result<String>| match line.map(|line| serde_json::from_str(&line)) {
        Ok(Ok(Value::Object(line))) => Some(Ok(line)),
        // The last line of a run that is being written.
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    };
    lines.filter_map(parse).collect()
}

/// A file of TensorBoard's events: records of protocol buffers, each with its length and checksums (`TFRecord`).
struct Events {
    file: File,
}

impl Events {
    fn create(folder: &Path, step: u64) -> io::Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = format!("events.out.tfevents.{:010}.{:09}.eva", now.as_secs(), now.subsec_nanos());
        let mut events = Self { file: File::create(folder.join(name))? };
        events.record(&event(now.as_secs_f64(), 0, |out| bytes(out, 3, b"brain.Event:2")))?;
        // A session that starts at a step replaces what others have of it and later ones (`SessionLog.START`).
        let session = event(now.as_secs_f64(), step + 1, |out| bytes(out, 7, &[0x08, 1]));
        events.record(&session)?;
        Ok(events)
    }

    fn scalars(&mut self, step: u64, numbers: &[(String, f64)]) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut summary = Vec::new();
        for (name, x) in numbers {
            let mut value = Vec::new();
            bytes(&mut value, 1, name.as_bytes());
            value.push(2 << 3 | 5);
            value.extend((*x as f32).to_le_bytes());
            bytes(&mut summary, 1, &value);
        }
        self.record(&event(now.as_secs_f64(), step, |out| bytes(out, 5, &summary)))
    }

    fn record(&mut self, data: &[u8]) -> io::Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(data.len() + 16);
        record.extend(length);
        record.extend(checksum(&length).to_le_bytes());
        record.extend(data);
        record.extend(checksum(data).to_le_bytes());
        self.file.write_all(&record)
    }
}

/// CRC-32C, masked as in `TFRecord`.
fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// An `Event`: wall time, step, and what `fill` adds.
fn event(time: f64, step: u64, fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = vec![1 << 3 | 1];
    out.extend(time.to_le_bytes());
    out.push(2 << 3);
    varint(&mut out, step);
    fill(&mut out);
    out
}

/// A field of bytes.
fn bytes(out: &mut Vec<u8>, field: u8, content: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, content.len() as u64);
    out.extend(content);
}

fn varint(out: &mut Vec<u8>, mut x: u64) {
    while x >= 0x80 {
        out.push(x as u8 | 0x80);
        x >>= 7;
    }
    out.push(x as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_records_with_their_checksums() {
        // What every file of TensorFlow's begins with: a record of 24 bytes.
        assert_eq!(checksum(&24u64.to_le_bytes()), 0x224b_7fa3);
        let dir = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(dir.path(), 6, true).unwrap();
        metrics.write(300, &[("loss".into(), 0.5)]).unwrap();
        let file = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
        let file = file.into_iter().find(|path| path.to_string_lossy().contains("tfevents")).unwrap();
        let all = fs::read(file).unwrap();
        let (mut rest, mut records) = (&all[..], Vec::new());
        while !rest.is_empty() {
            let n = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(checksum(&rest[..8]).to_le_bytes(), rest[8..12]);
            let (data, after) = rest[12..].split_at(n);
            assert_eq!(checksum(data).to_le_bytes(), after[..4]);
            records.push(data);
            rest = &after[4..];
        }
        // After the time, nine bytes of it.
        assert_eq!(records[0].len(), 26);
        assert_eq!(&records[0][9..], b"\x10\x00\x1a\x0dbrain.Event:2");
        assert_eq!(&records[1][9..], b"\x10\x07\x3a\x02\x08\x01");
        assert_eq!(&records[2][9..], b"\x10\xac\x02\x2a\x0d\x0a\x0b\x0a\x04loss\x15\x00\x00\x00\x3f");
    }

    #[test]
    fn a_run_that_goes_on_drops_what_came_after() {
        let dir = tempfile::tempdir().unwrap();
        let all = |dir: &Path| -> Vec<u64> {
            let lines = read(&dir.join(METRICS_FILE)).unwrap();
            lines.iter().map(|line| line["step"].as_u64().unwrap()).collect()
        };
        let mut metrics = Metrics::open(dir.path(), 0, false).unwrap();
        for step in 1..=5 {
            metrics.write(step, &[("loss".into(), 1.5), ("lr".into(), f64::NAN)]).unwrap();
        }
        write!(metrics.lines, "{{\"step\": 6, \"lo").unwrap();
        assert_eq!(all(dir.path()), [1, 2, 3, 4, 5]);
        let mut metrics = Metrics::open(dir.path(), 3, false).unwrap();
        metrics.write(4, &[("tokens".into(), 7.0)]).unwrap();
        assert_eq!(all(dir.path()), [1, 2, 3, 4]);
        let text = fs::read_to_string(dir.path().join(METRICS_FILE)).unwrap();
        assert!(text.starts_with("{\"loss\":1.5,\"lr\":null,\"step\":1}\n"), "{text}");
        assert!(text.ends_with("{\"step\":4,\"tokens\":7}\n"), "{text}");
    }
}
