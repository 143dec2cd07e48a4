"""Micrographs: from instrument files to a dataset whose folds do not leak.

In the order a micrograph passes through:
    aversa.py           the public SEM dataset: its archives, fetched and read
    schema.py           the columns of a dataset, which all stages share
    labelling.py        what names of files and folders mean
    refusals.py         why a file is not one readable micrograph
    calibration.py      lengths and settings as instruments record them, in one form
    xml_records.py      what instruments write as XML into TIFF tags
    vendors.py          TIFF tags to calibration and settings
    sidecars.py         the text file that an instrument writes beside an image
    tiff.py             one page of a TIFF and its record
    native.py           the microscopes' own formats
    sources.py          a folder, a table or a Hugging Face dataset to entries
    info_bar.py         the burnt-in info bar, found in the pixels
    microscope.py       a file to one 8-bit micrograph with its calibration
    reading.py          a file to what a dataset keeps of it, or why not
    rows.py             one row for all files with the same pixels
    ledger.py           which file became which row, in SQLite
    shards.py           rows to Parquet shards
    build.py            a source to a dataset, and again after changes
    dataset.py          a dataset read from wherever it lives
    near_duplicates.py  copies of one picture, found
    folds.py            folds that share neither specimen nor picture
"""
