//! The graph IR as text: [`print()`] writes it, [`parse()`] reads it back.
//!
//! ```text
//! module  := dim* fn*
//! dim     := "dim" NAME ("=" INT)?
//! fn      := "fn" "@"NAME "(" (KIND? "%"NAME ":" tensor ",")* ")" "->" tensor,+ ("prepares" "@"NAME)?
//!            body (cost ("or" NAME body cost)+)?
//! body    := "{" stmt* "return" "%"NAME,+ "}"
//! cost    := "cost" (poly | "max" "(" poly "," poly ")") (("+" poly) | ("+" "max" "(" poly "," poly ")"))*
//! poly    := "-"? term (("+" | "-") term)*               term := (NAME | NUMBER) ("*" (NAME | NUMBER))*
//! stmt    := "%"NAME "=" (OP ("\"" SPEC "\"")? | "call" "@"NAME) "%"NAME,* ("{" (KEY "=" ATTR),+ "}")? ":" type
//! KIND    := "weight" | "state"
//! type    := tensor | "(" tensor,* ")"
//! tensor  := DTYPE "[" (extent ("/" INT)?),* "]"
//! extent  := "-"? product (("+" | "-") product)*        product := (NAME | INT) ("*" (NAME | INT))*
//! comment := "//" to the end of the line
//! ```
//!
//! Space and line ends mean nothing. Names of values and functions may contain dots and digits.
//! Written types are assertions: they are inferred and compared. Attributes are [`crate::attr::Attr`]s;
//! a spec stands before the operands.
//!
//! [`print()`] is canonical: `parse(print(m))` is `m`, and `print(parse(t))` is `t` for printed text.
//! Comments are not kept.

mod lex;
mod nearest;
mod parse;
mod print;

pub use lex::{is_extent_name, is_value_name};
pub use nearest::nearest;
pub use parse::parse;
pub use print::{print, print_function};

/// How many mistakes are reported at most.
pub const MAX_DIAGS: usize = 20;
