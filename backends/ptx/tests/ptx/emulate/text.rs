//! PTX text, taken apart.

use std::collections::HashMap;

/// An operand.
#[derive(Clone, Debug, PartialEq)]
pub enum Arg {
    Reg(usize),
    /// A number: an integer, or the bits of a float.
    Number(u64),
    /// A name: of a label, a parameter, a special register, or memory.
    Name(String),
    /// `{a, b, …}`
    Vector(Vec<Arg>),
    /// `[a+offset]`, or `[a, {b, …}]`
    Memory(Box<Arg>, u64, Vec<Arg>),
    /// `a|b`
    Both(usize, usize),
    /// `_`
    Nothing,
}

/// An instruction.
#[derive(Clone, Debug)]
pub struct Inst<'t> {
    /// The predicate that it depends on, and what that must be.
    pub guard: Option<(usize, bool)>,
    /// Its name, taken apart at dots.
    pub op: Vec<&'t str>,
    pub args: Vec<Arg>,
    /// The line, for messages.
    pub line: &'t str,
}

/// An entry point.
pub struct Program<'t> {
    pub insts: Vec<Inst<'t>>,
    /// The instruction that a label is before.
    pub labels: HashMap<String, usize>,
    pub registers: usize,
    /// Names and bytes of constant memory.
    pub constants: HashMap<String, Vec<u8>>,
}

/// Registers, and the blocks of assembly that the text is in: what they declare is their own.
#[derive(Default)]
struct Reader {
    registers: HashMap<String, usize>,
    scopes: Vec<(usize, Vec<String>)>,
    count: usize,
}

impl<'t> Program<'t> {
    /// Reads the module's one entry point.
    pub fn new(text: &'t str) -> Self {
        let (head, rest) = text.split_once(".entry").expect("a module has an entry point");
        let (_, body) = rest.split_once("\n{\n").expect("an entry point has a body");
        let (body, _) = body.rsplit_once('}').expect("a body ends");
        let mut constants = HashMap::new();
        for line in head.lines().filter(|line| line.starts_with(".const")) {
            let (name, values) = line.split_once('[').expect("constants are many");
            let name = name.split_whitespace().last().expect("constants have a name");
            let (_, values) = values.split_once('{').expect("constants have values");
            let values = values.trim_end_matches("};").split(',');
            let bytes = values.map(|value| value.trim().parse().expect("constants are bytes")).collect();
            constants.insert(name.to_owned(), bytes);
        }
        let mut reader = Reader::default();
        let (mut insts, mut labels) = (Vec::new(), HashMap::new());
        for line in body.lines() {
            let line = line.split("//").next().unwrap_or("").trim();
            match line {
                "" => {}
                "{" => {
                    reader.count += 1;
                    reader.scopes.push((reader.count, Vec::new()));
                }
                "}" => {
                    reader.scopes.pop();
                }
                _ if line.starts_with(".reg") => reader.declare(line),
                _ if line.starts_with('.') => {}
                _ => match line.strip_suffix(':') {
                    // A label may be used before the scope is known to have it: every label in one is its own.
                    Some(label) => {
                        labels.insert(reader.label(label), insts.len());
                    }
                    None => insts.push(reader.inst(line)),
                },
            }
        }
        Self { insts, labels, registers: reader.registers.len(), constants }
    }
}

impl Reader {
    fn declare(&mut self, line: &str) {
        if let Some((_, names)) = self.scopes.last_mut() {
            let list = line.splitn(3, ' ').nth(2).expect("a type, then names");
            names.extend(list.trim_end_matches(';').split(',').map(|name| name.trim().to_owned()));
        }
    }

    fn label(&self, name: &str) -> String {
        match self.scopes.last() {
            Some((scope, _)) => format!("{name}#{scope}"),
            None => name.to_owned(),
        }
    }

    fn register(&mut self, name: &str) -> Option<usize> {
        let mine = self.scopes.last().filter(|(_, names)| names.iter().any(|n| n == name));
        let name = match mine {
            Some((scope, _)) => format!("{name}#{scope}"),
            // A percent sign and letters, then a number.
            None if name.starts_with('%') && name.ends_with(|c: char| c.is_ascii_digit()) => name.to_owned(),
            None => return None,
        };
        let next = self.registers.len();
        Some(*self.registers.entry(name).or_insert(next))
    }

    fn inst<'t>(&mut self, line: &'t str) -> Inst<'t> {
        let statement = line.trim_end_matches(';').trim();
        let (guard, statement) = match statement.strip_prefix('@') {
            None => (None, statement),
            Some(rest) => {
                let (name, rest) =
                    rest.split_once(char::is_whitespace).expect("a guard, then an instruction");
                let wanted = !name.starts_with('!');
                let guard = self.register(name.trim_start_matches('!')).expect("a guard is a register");
                (Some((guard, wanted)), rest.trim())
            }
        };
        let (op, args) = statement.split_once(char::is_whitespace).unwrap_or((statement, ""));
        let args = split(args).into_iter().map(|arg| self.arg(arg)).collect();
        Inst { guard, op: op.split('.').collect(), args, line }
    }

    fn arg(&mut self, text: &str) -> Arg {
        let inside =
            |open: char, close: char| text.strip_prefix(open).and_then(|rest| rest.strip_suffix(close));
        if let Some(list) = inside('{', '}') {
            return Arg::Vector(split(list).into_iter().map(|arg| self.arg(arg)).collect());
        }
        if let Some(place) = inside('[', ']') {
            let parts = split(place);
            let coords = match parts.get(1).map(|part| self.arg(part)) {
                Some(Arg::Vector(coords)) => coords,
                _ => Vec::new(),
            };
            let (base, offset) = parts[0].split_once('+').unwrap_or((parts[0], "0"));
            let offset = offset.parse::<i64>().expect("an offset is a number") as u64;
            return Arg::Memory(Box::new(self.arg(base)), offset, coords);
        }
        if let Some((first, second)) = text.split_once('|') {
            let both = [first, second].map(|name| self.register(name).expect("both are registers"));
            return Arg::Both(both[0], both[1]);
        }
        if text == "_" {
            return Arg::Nothing;
        }
        if let Some(reg) = self.register(text) {
            return Arg::Reg(reg);
        }
        let hex = |digits: &str| u64::from_str_radix(digits, 16).expect("the bits of a float");
        if let Some(bits) = text.strip_prefix("0f").or(text.strip_prefix("0d")) {
            return Arg::Number(hex(bits));
        }
        match text.parse::<i128>() {
            Ok(number) => Arg::Number(number as u64),
            Err(_) if text.starts_with(|c: char| c.is_ascii_lowercase()) && !text.contains("eva_") => {
                Arg::Name(self.label(text))
            }
            Err(_) => Arg::Name(text.to_owned()),
        }
    }
}

/// Parts between commas that are in no brackets.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    if !text[start..].trim().is_empty() {
        parts.push(text[start..].trim());
    }
    parts
}
