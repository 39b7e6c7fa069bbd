"""Any file, coded with the model of a run: `compress` and `decompress`."""

from argparse import Namespace
from pathlib import Path

from harness.errors import UsageError
from harness.machine.progress import show_bytes
from launch.commands.options import (
    AddCommand,
    add_max_memory,
    add_output,
    add_work_options,
)


def register(command: AddCommand) -> None:
    """Add the flags of these commands."""
    sub = command("compress", compress_command, "code any file with the model of a run")
    sub.add_argument("--run", dest="run_dir", type=Path, required=True, metavar="RUN")
    sub.add_argument("input", type=Path, metavar="INPUT", help="`-`: standard input")
    add_output(sub)
    add_work_options(sub)
    sub = command("decompress", decompress_command, "rebuild the text from an archive alone")
    sub.add_argument("archive", type=Path, metavar="FILE.cl", help="`-`: standard input")
    sub.add_argument("--inputs", metavar="SET", help="what coded labels were given, as corpus.path names it")
    add_output(sub)
    add_max_memory(sub)
    add_work_options(sub)


def compress_command(options: Namespace) -> None:
    """Write the archive of a file."""
    from eval.offline.evaluate import compress
    from harness.run.directory import load_run_config, open_run_data
    from launch.jobs.streams import opened

    config = load_run_config(options.run_dir)
    with opened(options.input, options.output, options.force) as (source, output):
        try:
            text = source.read_bytes()
        except OSError as error:
            raise UsageError(f"{options.input}: {error.strerror}; give the path of a file") from None
        progress = show_bytes(options.quiet)
        data = open_run_data(options.run_dir, config)
        report = compress(options.run_dir, config, data, text, output, options.threads, progress)
        print(
            f"{options.output}: {report.total_bytes:,} bytes for {len(text):,}, {report.kind} (header "
            f"{report.header_bytes:,}, model {report.model_bytes:,}, tokenizer {report.tokenizer_bytes:,}, data "
            f"{report.data_bytes:,}, checksum {report.checksum_bytes})"
        )


def decompress_command(options: Namespace) -> None:
    """Decode an archive."""
    from eval.offline.archive import read_archive
    from harness.files import write_file
    from launch.jobs.streams import opened

    with opened(options.archive, options.output, options.force) as (archive, output):
        if options.inputs:
            # Only labels have them.
            from eval.labels.archive import read_label_archive

            text = read_label_archive(archive, options.inputs, options.max_memory)
        else:
            text = read_archive(archive, options.threads, show_bytes(options.quiet), options.max_memory)
        write_file(output, text)
        if not options.quiet:
            print(f"{options.output}: {len(text):,} bytes, SHA-256 verified")
