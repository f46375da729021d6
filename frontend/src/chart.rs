//! Charts of lines, as SVG or PNG.
//!
//! Text is set in DejaVu Sans, which is part of the program: charts are the same on every machine, and no library of the
//! system is needed.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;
use std::ops::Range;
use std::sync::Once;

/// Points of one line, and what it is called.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its name, in the legend.
    pub name: String,
    /// `x` and `y`.
    pub points: Vec<(f64, f64)>,
}

/// A chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// The name of its file, without what follows the last point.
    pub file: &'static str,
    /// What is over it.
    pub title: String,
    /// What its abscissa and its ordinate are.
    pub axes: [String; 2],
    /// Whether the abscissa has powers of two at equal distances.
    pub doubling: bool,
    /// Whether the ordinate begins at zero.
    pub from_zero: bool,
    /// Its lines.
    pub series: Vec<Series>,
}

/// What a chart is written as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Lines and text.
    #[default]
    Svg,
    /// Pixels.
    Png,
}

impl Format {
    /// How names of such files end, after the point.
    pub fn extension(self) -> &'static str {
        match self {
            Format::Svg => "svg",
            Format::Png => "png",
        }
    }
}

/// Pixels of a chart.
const SIZE: (u32, u32) = (960, 560);

/// The name that text asks for its font by.
const FONT: &str = "sans-serif";

impl Chart {
    /// The bytes of a file with the chart; an error if it cannot be drawn, such as one without points.
    pub fn render(&self, format: Format) -> Result<Vec<u8>, String> {
        static FONTS: Once = Once::new();
        FONTS.call_once(|| {
            // A font that were not there would be an error of what is drawn with it.
            let _ = register_font(FONT, FontStyle::Normal, dejavu::sans::regular());
        });
        let x = range(self.points().map(|point| point.0));
        let y = range(self.points().map(|point| point.1).chain(self.from_zero.then_some(0.0)));
        if self.points().next().is_none() || ![x.start, x.end, y.start, y.end].into_iter().all(f64::is_finite)
        {
            return Err(format!("`{}` has no points that can be drawn", self.file));
        }
        match format {
            Format::Svg => {
                let mut text = String::new();
                let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
                self.draw(area, x, y).map_err(|e| e.to_string())?;
                Ok(text.into_bytes())
            }
            Format::Png => {
                let (width, height) = SIZE;
                let mut pixels = vec![0; (width * height * 3) as usize];
                let area = BitMapBackend::with_buffer(&mut pixels, SIZE).into_drawing_area();
                self.draw(area, x, y).map_err(|e| e.to_string())?;
                let mut file = Vec::new();
                let mut encoder = png::Encoder::new(&mut file, width, height);
                encoder.set_color(png::ColorType::Rgb);
                encoder.set_compression(png::Compression::High);
                let writer = encoder.write_header();
                writer.and_then(|mut writer| writer.write_image_data(&pixels)).map_err(|e| e.to_string())?;
                Ok(file)
            }
        }
    }

    /// All points, as they are drawn.
    fn points(&self) -> impl Iterator<Item = (f64, f64)> {
        self.series.iter().flat_map(|series| &series.points).map(|&point| self.placed(point))
    }

    fn placed(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (if self.doubling { x.log2() } else { x }, y)
    }

    fn draw<B: DrawingBackend>(
        &self,
        area: DrawingArea<B, Shift>,
        x: Range<f64>,
        y: Range<f64>,
    ) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
        area.fill(&WHITE)?;
        let mut axes = ChartBuilder::on(&area)
            .caption(&self.title, (FONT, 20))
            .margin(14)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d(x, y)?;
        let label = |x: &f64| match self.doubling {
            true if x.fract() == 0.0 => format!("{}", x.exp2()),
            true => String::new(),
            false => format!("{x}"),
        };
        axes.configure_mesh()
            .x_desc(&self.axes[0])
            .y_desc(&self.axes[1])
            .x_label_formatter(&label)
            .light_line_style(WHITE)
            .draw()?;
        for (i, series) in self.series.iter().enumerate() {
            let colour = Palette99::pick(i).to_rgba();
            let points = || series.points.iter().map(|&point| self.placed(point));
            let line = LineSeries::new(points(), colour.stroke_width(2));
            let legend = move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], colour.stroke_width(2));
            axes.draw_series(line)?.label(&series.name).legend(legend);
            if self.doubling {
                axes.draw_series(points().map(|point| Circle::new(point, 3, colour.filled())))?;
            }
        }
        axes.configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        area.present()
    }
}

/// From a little below the least to a little above the greatest.
fn range(numbers: impl Iterator<Item = f64>) -> Range<f64> {
    let (least, most) =
        numbers.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), x| (least.min(x), most.max(x)));
    // A line that does not change has some room, too.
    let room = if most > least { 0.03 * (most - least) } else { 0.5 * least.abs().max(1.0) };
    (least - room)..(most + room)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(doubling: bool) -> Chart {
        let line = |name: &str, slope: f64| Series {
            name: name.into(),
            points: [8.0, 16.0, 32.0, 128.0].map(|x| (x, slope * x)).to_vec(),
        };
        Chart {
            file: "some",
            title: "Some lines".into(),
            axes: ["experts".into(), "ms".into()],
            doubling,
            from_zero: true,
            series: vec![line("flat", 0.0), line("steep", 1.5)],
        }
    }

    #[test]
    fn text_and_lines_are_drawn() {
        for doubling in [false, true] {
            let svg = String::from_utf8(chart(doubling).render(Format::Svg).unwrap()).unwrap();
            assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
            // Of each a line, and one in the legend.
            assert!(svg.matches("<polyline").count() >= 4, "{svg}");
            for text in ["Some lines", "experts", "ms", "flat", "steep"] {
                assert!(svg.contains(text), "{text}: {svg}");
            }
        }
        // Powers of two are at equal distances: 64, where there is no point, is named as 8 is.
        let svg = String::from_utf8(chart(true).render(Format::Svg).unwrap()).unwrap();
        let named = |label: &str| svg.lines().any(|line| line.trim() == label);
        assert!([8, 16, 32, 64, 128].iter().all(|n| named(&n.to_string())), "{svg}");
    }

    #[test]
    fn pixels_have_the_text_too() {
        let decode = |file: Vec<u8>| {
            let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
            let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
            let frame = reader.next_frame(&mut pixels).unwrap();
            assert_eq!((frame.width, frame.height), SIZE);
            pixels
        };
        // Pixels of the uppermost rows, where nothing but the title is, that are dark.
        let dark = |pixels: &[u8]| {
            let rows = &pixels[..(SIZE.0 * 3 * 40) as usize];
            rows.chunks(3).filter(|pixel| pixel.iter().all(|&x| x < 100)).count()
        };
        let with = decode(chart(true).render(Format::Png).unwrap());
        let without = decode(Chart { title: " ".into(), ..chart(true) }.render(Format::Png).unwrap());
        assert!(dark(&with) > 100 && dark(&without) == 0, "{} and {}", dark(&with), dark(&without));
    }

    #[test]
    fn nothing_cannot_be_drawn() {
        let empty = Chart { series: Vec::new(), ..chart(false) };
        assert_eq!(empty.render(Format::Svg).unwrap_err(), "`some` has no points that can be drawn");
        let mut odd = chart(true);
        odd.series[0].points = vec![(0.0, 1.0)];
        assert_eq!(odd.render(Format::Png).unwrap_err(), "`some` has no points that can be drawn");
    }
}
